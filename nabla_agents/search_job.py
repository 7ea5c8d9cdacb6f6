"""SearchJob: one search as adapters and servers run it: in its engine's turn, alone or joined with what else waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from nabla_agents.errors import ConfigurationError
from nabla_agents.result import Result
from nabla_agents.turns import on_worker, turn
from nabla_agents.types import Budget, FinishReason, Prompt, Step
from nabla_agents.watched import Watched

if TYPE_CHECKING:
    from nabla_agents.config import Sampling
    from nabla_agents.engine import Engine
    from nabla_agents.run import Run
    from nabla_agents.strategies import Strategy

_MOST: Final = 32  # searches of one batch


class SearchJob:
    """One search that is to be run, once: by `steps` or `asteps`, or to its end by `drain`, `adrain` or those for many.

    Searches of one engine take turns, operation by operation, whoever runs them; those that are awaited at the same
    time, and have the same settings, run as one batch. A search works in the context of whoever made its job, and
    `report` is told each of its steps there, the last one included. Ctrl-C ends the caller, not the search alone.

    Args:
        engine: what searches.
        prompt: what `Engine.prompt` made.
        draft: an answer from elsewhere to start from.
        report: is told each step on the thread that computes it.
        settled: whether the first completion is good enough to end the search with it.
        top_logprobs: how many `alternatives` each place of the result gets; one forward pass more where it is not 0.

    Raises:
        ConfigurationError: `top_logprobs` of an engine that has none.
    """

    def __init__(
        self,
        engine: Engine,
        prompt: Prompt,
        *,
        seed: int,
        sampling: Sampling,
        budget: Budget,
        strategy: Strategy | None = None,
        draft: str | None = None,
        report: Callable[[Step], object] = lambda step: None,
        settled: Callable[[Step], bool] | None = None,
        top_logprobs: int = 0,
    ) -> None:
        if top_logprobs and not engine.has_alternatives:
            raise ConfigurationError(
                f"top_logprobs is {top_logprobs}, which a remote engine has not: set it to 0, or ask the server by an "
                "OpenAI client."
            )
        self.engine, self.prompt, self.seed, self.draft = engine, prompt, seed, draft
        self.sampling, self.budget = sampling, budget
        self._watched = Watched(engine.strategy_of(strategy), report=report, settled=settled)
        self.alternatives: list[list[tuple[int, float]]] = []
        """Once the search has ended: at each place of its result, the likeliest tokens with log π in nats."""
        self._top_logprobs = top_logprobs
        self._run: Run | None = None
        self._outcome: Result | BaseException | None = None

    # ── step by step ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self) -> Iterator[Step]:
        """The search's steps, each computed when it is asked for. `result` is the best so far.

        Raises:
            KeyboardInterrupt: the search was interrupted by one.
        """
        while (step := self._next()) is not None:
            self._check_not_interrupted()
            yield step

    async def asteps(self) -> AsyncGenerator[Step, None]:
        """As `steps`, off the event loop. An abandoned iterator costs nothing more, a cancelled one at most one
        operation.
        """
        try:
            while (step := await on_worker(self.engine, self._next)) is not None:
                yield step
        finally:
            self.cancel()

    @property
    def result(self) -> Result:
        """The best so far; once the search has ended, its result. Before it began, an error."""
        if self._outcome is None:
            return self._begun().result
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Stops this search alone, before its next operation; from any thread, also before it has begun."""
        self._watched.cancel()

    # ── to its end ────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> Result:
        """Runs to the end and returns the result. Raises as `steps` does."""
        for _ in self.steps():
            pass
        return self.result

    async def adrain(self) -> Result:
        """As `drain`, off the event loop, in one batch with what else waits. A cancelled await stops this search."""
        return (await self.adrain_all([self]))[0]

    @staticmethod
    def drain_all(jobs: Sequence[SearchJob]) -> list[Result]:
        """One result per job; those that `joins` lets run together do.

        Raises:
            KeyboardInterrupt: a search was interrupted by one.
        """
        for job in jobs:
            if job._outcome is None:
                _drain_joined([other for other in jobs if other._outcome is None and job.joins(other)])
            job._check_not_interrupted()
        return [job.result for job in jobs]

    @staticmethod
    async def adrain_all(jobs: Sequence[SearchJob]) -> list[Result]:
        """As `drain_all`, off the event loop, in one batch with what else waits. A cancelled await stops these."""
        queues = [_queue(job) for job in jobs]
        try:
            if jobs and not jobs[0].engine.takes_turns:
                await asyncio.gather(*(on_worker(job.engine, _drain_joined, [job]) for job in jobs))
            for job, queue in zip(jobs, queues, strict=True):
                if job._outcome is None:  # it may have been joined to another one's batch
                    await on_worker(job.engine, queue.serve, job)
            return [job.result for job in jobs]
        finally:
            for job, queue in zip(jobs, queues, strict=True):
                job.cancel()
                queue.leave(job)

    def joins(self, other: SearchJob) -> bool:
        """Whether both may be searched in one batch: the same engine and settings, and no draft."""
        same = (self.sampling, self.budget) == (other.sampling, other.budget) and self.engine is other.engine
        drafts = self.draft is not None or other.draft is not None
        return self is other or (same and not drafts and self._watched.strategy == other._watched.strategy)

    # ── within ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begun(self) -> Run:
        if self._run is None:
            strategy: Any = self._watched
            options = {"sampling": self.sampling, "budget": self.budget, "draft": self.draft}
            self._run = self.engine.steps(self.prompt, seed=self.seed, strategy=strategy, **options)
        return self._run

    def _next(self) -> Step | None:
        with turn(self.engine):
            step = next(self._begun(), None)
            if step is not None and step.done:
                self._end(self._begun().result)
            return step

    def _end(self, outcome: Result | BaseException) -> None:
        if isinstance(outcome, Result):
            outcome = self._with_alternatives(outcome)
            self._watched.tell(outcome.trace[-1])
        self._outcome = outcome

    def _with_alternatives(self, result: Result) -> Result:
        """The result, charged for them."""
        if not self._top_logprobs or self._watched.cancelled:
            return result
        self.alternatives, usage = self.engine.alternatives(self.prompt, result, top=self._top_logprobs)
        return result.with_usage(result.usage + usage)

    def _check_not_interrupted(self) -> None:
        ended = isinstance(self._outcome, Result) and self._outcome.finish_reason is FinishReason.INTERRUPTED
        if ended and not self._watched.cancelled:
            raise KeyboardInterrupt


_lock = threading.Lock()


class _Queue:
    """What waits for one engine."""

    def __init__(self) -> None:
        self.waiting: list[SearchJob] = []

    def serve(self, job: SearchJob) -> None:
        """Gives the job its outcome, and those that can be searched with it. An error is the outcome of all of them."""
        with _lock:
            if job not in self.waiting:
                return
            jobs = [job, *(other for other in self.waiting if other is not job and job.joins(other))][:_MOST]
            self.waiting = [other for other in self.waiting if other not in jobs]
        try:
            _drain_joined(jobs)
        except BaseException as e:
            for one in jobs:
                one._end(e)

    def leave(self, job: SearchJob) -> None:
        with _lock:
            self.waiting = [other for other in self.waiting if other is not job]


_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()


def _queue(job: SearchJob) -> _Queue:
    """The queue of the job's engine, in which it waits from now on."""
    with _lock:
        queue = _queues.setdefault(job.engine, _Queue())
        queue.waiting.append(job)
        return queue


def _drain_joined(jobs: Sequence[SearchJob]) -> None:
    """Gives every job its result, from one batch where there are several; they must join."""
    first = jobs[0]
    if len(jobs) == 1:
        while first._next() is not None:
            pass
        return
    together: Any = _Together([job._watched for job in jobs])
    with turn(first.engine):
        results = first.engine.generate_batch(
            [job.prompt for job in jobs],
            seeds=[job.seed for job in jobs],
            sampling=first.sampling,
            budget=first.budget,
            strategy=together,
            max_batch=_MOST,
        )
        for job, result in zip(jobs, results, strict=True):
            job._end(result)


class _Together:
    """The strategies of a batch's jobs as one: each search, as it starts, gets the next job's."""

    def __init__(self, strategies: Sequence[Watched]) -> None:
        self._first, self._next = strategies[0], iter(strategies)

    @property
    def rule(self) -> Any:
        return self._first.rule

    def select(self, pool: Any) -> Any:
        return self._first.select(pool)

    def steps(self, search: Any) -> Iterator[Step]:
        return next(self._next).steps(search)
