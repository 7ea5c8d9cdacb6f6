"""SearchProgress: a strategy at work on one request, as the scheduler runs it and its `Run` sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import torch

from nabla_agents.request import Request
from nabla_agents.result import Result, Trace
from nabla_agents.search.base import Strategy
from nabla_agents.search.operation import DOING, ROLLOUTS, Cancelled, Operation, Writing
from nabla_agents.search.pool import Scored
from nabla_agents.search.search import STOPPED, Search
from nabla_agents.types import Doing, FinishReason, Step

try:
    import resource
except ImportError:  # not a Unix
    resource = None


class SearchProgress:
    """The `Progress` of a local search: its steps as a coroutine that awaits operations, and its result so far."""

    def __init__(self, request: Request, search: Search, strategy: Strategy, *, wake: Callable[[], None]) -> None:
        self.search = search
        self.wake = wake
        self._request, self._strategy = request, strategy
        self._alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()
        self._finished: Step | None = None
        self._awaited: tuple[Operation | Writing, float] | None = None

    @property
    def doing(self) -> Doing | None:
        """What it waits for."""
        awaited = self._awaited
        if awaited is None:
            return None
        operation, since = awaited
        seconds = time.perf_counter() - since
        if isinstance(operation, Writing):
            return Doing(DOING[ROLLOUTS], len(operation.jobs), operation.tokens(), seconds)
        return Doing(DOING[operation.rank], operation.rows, 0, seconds)

    def awaits(self, operation: Operation | Writing | None) -> None:
        """The scheduler says what it waits for now."""
        self._awaited = None if operation is None else (operation, time.perf_counter())

    async def steps(self) -> AsyncIterator[Step]:
        """The strategy's steps, and one that commits the whole text."""
        until = self._request.until
        try:
            async for step in self._strategy.steps(self.search):
                yield step
                if until is not None and step.accepted and until(step):
                    self.search.ended = (FinishReason.STOP, "good enough")
                    break
            if self._request.top_logprobs and (best := self._best) is not None:
                self._alternatives = await self.search.alternatives(best, self._request.top_logprobs)
        except (Cancelled, KeyboardInterrupt):  # the latter from a tool: whoever presses Ctrl-C means us
            self.search.ended = STOPPED
        self._finished = self._last_step()
        yield self._finished

    def failed(self, error: BaseException) -> None:
        """Something broke; what was found is kept."""
        self.search.ended = (FinishReason.INTERRUPTED, f"{type(error).__name__}: {error}")

    def cancel(self) -> None:
        self.search.cancel()
        self.wake()

    def result(self, steps: Sequence[Step], *, ended: bool) -> Result:
        best, search = self._best, self.search
        rollout = None if best is None else best.rollout
        usage = search.usage if self._finished is None else self._finished.usage  # its clock stops at the end
        truncated = rollout is not None and rollout.finish_reason is FinishReason.LENGTH
        natural = FinishReason.LENGTH if truncated else FinishReason.STOP
        unfinished = (FinishReason.INTERRUPTED, "not run to its end")
        reason, detail = search.ended or ((natural, "nothing promising left") if ended else unfinished)
        return Result(
            text="" if rollout is None else rollout.text,
            token_ids=() if rollout is None else rollout.completion_ids,
            score=None if best is None else best.score,
            finish_reason=reason,
            usage=replace(usage, peak_memory_bytes=_peak_memory_bytes()),
            trace=Trace(steps, question=search.prompt.question),
            log_likelihood=float("nan") if rollout is None else rollout.log_likelihood,
            truncated=truncated,
            detail=detail,
            seed=search.seed,
            prompt_tokens=len(search.prompt.ids),
            log_probs=() if rollout is None or rollout.log_probs is None else tuple(rollout.log_probs.tolist()),
            alternatives=self._alternatives,
        )

    @property
    def _best(self) -> Scored | None:
        return self._strategy.select(self.search.pool)

    def _last_step(self) -> Step:
        best = self._best
        return Step(
            kind="commit",
            committed_text="" if best is None else best.rollout.text,
            accepted=True,
            log_likelihood=float("nan") if best is None else best.rollout.log_likelihood,
            score=None if best is None else best.score,
            text="" if best is None else best.rollout.text,
            usage=self.search.usage,
            done=True,
            gains=self.search.noted(),
        )


def _peak_memory_bytes() -> int:
    """Of the GPU since the process began where there is one, else of the process; 0 where the system does not say."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
