"""Run: a search in progress, step by step, with the best result so far at any time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from nabla_agents.models.threads import release_threads
from nabla_agents.pool import Scored
from nabla_agents.result import Result
from nabla_agents.strategies.base import Strategy
from nabla_agents.strategies.search import Cancelled, Search
from nabla_agents.trace import Trace
from nabla_agents.types import FinishReason, Step

try:
    import resource
except ImportError:  # not a Unix
    resource = None


class Run(Iterator[Step]):
    """A search in progress. The last step is of kind `commit` and carries the whole text; `result` is the best so far.

    `cancel()`, from any thread, ends the search before its next operation.
    """

    def __init__(self, search: Search, strategy: Strategy) -> None:
        self._search, self._strategy = search, strategy
        self._steps = strategy.steps(search)
        self._trace: list[Step] = []
        self._finished = False

    def __next__(self) -> Step:
        if self._finished:
            raise StopIteration
        try:
            step = next(self._steps, None)
        except (Cancelled, KeyboardInterrupt):
            self.interrupt()
            step = None
        except BaseException as e:
            self._finished = True
            self._search.ended = (FinishReason.INTERRUPTED, f"{type(e).__name__}: {e}")
            raise
        if step is None:
            self._finished = True
            step = self._last_step()
            release_threads()
        self._trace.append(step)
        return step

    def cancel(self) -> None:
        self._search.cancel()

    def interrupt(self) -> None:
        """Ends the run here; `result` says that it was interrupted."""
        self._search.cancel()
        self._search.ended = (FinishReason.INTERRUPTED, "stopped by the caller")

    def drain(self) -> Result:
        """Runs to the end and returns the result."""
        for _ in self:
            pass
        return self.result

    @property
    def result(self) -> Result:
        best, search = self._best, self._search
        rollout = None if best is None else best.rollout
        usage = self._trace[-1].usage if self._finished and self._trace else search.usage  # its clock stops at the end
        truncated = rollout is not None and rollout.finish_reason is FinishReason.LENGTH
        natural = FinishReason.LENGTH if truncated else FinishReason.STOP
        unfinished = (FinishReason.INTERRUPTED, "not run to its end")
        reason, detail = search.ended or ((natural, "nothing promising left") if self._finished else unfinished)
        return Result(
            text="" if rollout is None else rollout.text,
            token_ids=() if rollout is None else rollout.completion_ids,
            score=None if best is None else best.score,
            finish_reason=reason,
            usage=replace(usage, peak_memory_bytes=_peak_memory_bytes()),
            trace=Trace(self._trace, question=search.prompt.question),
            log_likelihood=float("nan") if rollout is None else rollout.log_likelihood,
            truncated=truncated,
            detail=detail,
            seed=search.seed,
            prompt_tokens=len(search.prompt.ids),
            log_probs=() if rollout is None or rollout.log_probs is None else tuple(rollout.log_probs.tolist()),
        )

    @property
    def _best(self) -> Scored | None:
        return self._strategy.select(self._search.pool)

    def _last_step(self) -> Step:
        best = self._best
        return Step(
            kind="commit",
            committed_text="" if best is None else best.rollout.text,
            accepted=True,
            log_likelihood=float("nan") if best is None else best.rollout.log_likelihood,
            score=None if best is None else best.score,
            text="" if best is None else best.rollout.text,
            usage=self._search.usage,
            done=True,
            gains=self._search.noted(),
        )


def _peak_memory_bytes() -> int:
    """Of the GPU since the process began where there is one, else of the process; 0 where the system does not say."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
