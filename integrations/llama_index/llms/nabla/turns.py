"""An engine's turns: awaited calls that wait at the same time run as one batch, on one thread per engine."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from nabla_agents import Budget, Prompt, Result, Step

if TYPE_CHECKING:
    from nabla_agents import Engine, Run, Sampling, Strategy

_MOST: Final = 32  # calls of one batch
_lock = threading.Lock()
_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()


class Watched:
    """A strategy of one request: its steps are reported in the caller's context, it ends where the first completion is
    settled, and it can be stopped from outside before its next operation.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        report: Callable[[Step | None], None],
        settled: Callable[[Step], bool] | None = None,
        context: contextvars.Context,
    ) -> None:
        self.strategy, self._report, self._settled = strategy, report, settled
        self._context = context
        self._search: Any = None
        self._cancelled = False

    @property
    def rule(self) -> Any:
        return self.strategy.rule

    def select(self, pool: Any) -> Any:
        return self.strategy.select(pool)

    def cancel(self) -> None:
        self._cancelled = True
        if self._search is not None:
            self._search.cancel()

    def steps(self, search: Any) -> Iterator[Step]:
        self._search = search
        if self._cancelled:
            search.cancel()
        return self._steps(search)

    def _steps(self, search: Any) -> Iterator[Step]:
        self._context.run(self._report, None)
        steps = self._context.run(self._inner, search)
        first = True
        while (step := self._context.run(next, steps, None)) is not None:
            self._context.run(self._report, step)
            yield step
            if first and self._settled is not None and self._settled(step):
                return
            first = False

    def _inner(self, search: Any) -> Iterator[Step]:
        from nabla_agents import BestOfN, SelfConsistency  # loads torch, which is there by now

        if self._settled is not None and isinstance(self.strategy, BestOfN | SelfConsistency):
            # Their first step is a whole batch; whether that is needed, one rollout tells.
            for entry in search.roll([()], temperature=0.0):
                yield Step(
                    kind="rollout",
                    committed_text="",
                    accepted=True,
                    log_likelihood=entry.rollout.log_likelihood,
                    score=entry.score,
                    text=entry.rollout.text,
                    usage=search.usage,
                )
        yield from self.strategy.steps(search)


@dataclass(eq=False)
class Job:
    """One search that is to run to its end."""

    prompt: Prompt
    seed: int
    sampling: Sampling
    budget: Budget
    watched: Watched
    draft: str | None = None
    outcome: list[Result | BaseException] = field(default_factory=list)

    def joins(self, other: Job) -> bool:
        """Whether both may be searched in one batch."""
        same = (self.sampling, self.budget) == (other.sampling, other.budget) and self.draft is other.draft is None
        return self is other or (same and self.watched.strategy == other.watched.strategy)

    def start(self, engine: Engine) -> Run:
        strategy: Any = self.watched
        options = {"sampling": self.sampling, "budget": self.budget, "draft": self.draft}
        return engine.steps(self.prompt, seed=self.seed, strategy=strategy, **options)

    @property
    def result(self) -> Result:
        [outcome] = self.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def awaited(engine: Engine, job: Job) -> Result:
    """The job's result, from a batch with what else waits. A cancelled await stops this search alone."""
    with _lock:
        queue = _queues.setdefault(engine, _Queue())
        queue.waiting.append(job)
    try:
        await asyncio.get_running_loop().run_in_executor(queue.worker, queue.serve, engine, job)
        return job.result
    finally:
        job.watched.cancel()
        queue.leave(job)


def batch(engine: Engine, jobs: Sequence[Job]) -> list[Result]:
    """One result per job from one engine batch; the jobs must join."""
    if not jobs:
        return []
    together: Any = _Together(jobs)
    return engine.generate_batch(
        [job.prompt for job in jobs],
        seeds=[job.seed for job in jobs],
        sampling=jobs[0].sampling,
        budget=jobs[0].budget,
        strategy=together,
        max_batch=_MOST,
    )


class _Queue:
    """What waits for one engine, and the thread that serves it."""

    def __init__(self) -> None:
        self.waiting: list[Job] = []
        self.worker = ThreadPoolExecutor(1, "nabla")

    def serve(self, engine: Engine, job: Job) -> None:
        """Gives the job its outcome, and those that can be searched with it."""
        with _lock:
            if job.outcome or job not in self.waiting:
                return
            jobs = [job, *(other for other in self.waiting if other is not job and job.joins(other))][:_MOST]
            self.waiting = [other for other in self.waiting if other not in jobs]
        try:
            results = [job.start(engine).drain()] if len(jobs) == 1 else batch(engine, jobs)
        except BaseException as e:
            results = [e] * len(jobs)
        for one, result in zip(jobs, results, strict=True):
            one.outcome.append(result)

    def leave(self, job: Job) -> None:
        with _lock:
            self.waiting = [other for other in self.waiting if other is not job]


class _Together:
    """The strategies of a batch's jobs as one: each search, as it starts, gets the next job's."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._strategy, self._next = jobs[0].watched, iter([job.watched for job in jobs])

    @property
    def rule(self) -> Any:
        return self._strategy.rule

    def select(self, pool: Any) -> Any:
        return self._strategy.select(pool)

    def steps(self, search: Any) -> Iterator[Step]:
        return next(self._next).steps(search)
