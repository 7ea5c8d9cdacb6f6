"""An engine's turns: one operation at a time, whoever asks, from threads or from async code."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from nabla_agents import Engine, Run, Step, Strategy

ResultT = TypeVar("ResultT")

_lock = threading.Lock()
_turns: WeakKeyDictionary[Engine, threading.RLock] = WeakKeyDictionary()
_workers: WeakKeyDictionary[Engine, ThreadPoolExecutor] = WeakKeyDictionary()


def turn(engine: Engine) -> threading.RLock:
    """The lock under which the engine works, so that callers' passes do not compete for one device."""
    with _lock:
        return _turns.setdefault(engine, threading.RLock())


def steps(engine: Engine, run: Run) -> Iterator[Step]:
    """The run's steps, each computed in a turn of its own when it is asked for."""
    while (step := _next(engine, run)) is not None:
        yield step


async def asteps(
    engine: Engine, run: Run, report: Callable[[Step], None] = lambda step: None
) -> AsyncGenerator[Step, None]:
    """As `steps`, off the event loop, each step reported there too. An abandoned iterator costs nothing more, a
    cancelled one at most one operation.
    """

    def reported() -> Step | None:
        step = _next(engine, run)
        if step is not None:
            report(step)
        return step

    try:
        while (step := await on_worker(engine, reported)) is not None:
            yield step
    finally:
        run.cancel()


async def on_worker(engine: Engine, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Awaits a function that runs on the engine's one worker thread in the caller's context."""
    with _lock:
        worker = _workers.setdefault(engine, ThreadPoolExecutor(1, "nabla"))
    call = functools.partial(contextvars.copy_context().run, function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(worker, call)


def _next(engine: Engine, run: Run) -> Step | None:
    with turn(engine):
        return next(run, None)


class Cancellable:
    """A strategy whose searches can all be stopped from outside, each before its next operation."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._searches: list[Any] = []
        self._cancelled = False

    @property
    def rule(self) -> Any:
        return self._strategy.rule

    def steps(self, search: Any) -> Iterator[Step]:
        self._searches.append(search)
        if self._cancelled:
            search.cancel()
        return self._strategy.steps(search)

    def select(self, pool: Any) -> Any:
        return self._strategy.select(pool)

    def cancel(self) -> None:
        self._cancelled = True
        for search in list(self._searches):
            search.cancel()


class UntilEnough:
    """A strategy that ends where its best completion's score is enough."""

    def __init__(self, strategy: Strategy, enough: float) -> None:
        self._strategy, self._enough = strategy, enough

    @property
    def rule(self) -> Any:
        return self._strategy.rule

    def steps(self, search: Any) -> Iterator[Step]:
        for step in self._strategy.steps(search):
            yield step
            best = self.select(search.pool)
            if best is not None and best.score is not None and best.score.value >= self._enough:
                return

    def select(self, pool: Any) -> Any:
        return self._strategy.select(pool)
