"""Engines driven from async code: one worker thread each, and searches that can be cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from nabla_agents import Engine, Step, Strategy

ResultT = TypeVar("ResultT")

_lock = threading.RLock()
_workers: WeakKeyDictionary[Engine, ThreadPoolExecutor] = WeakKeyDictionary()


async def on_worker(engine: Engine, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Awaits a function that runs on the engine's one worker thread in the caller's context.

    Concurrent callers take turns, so that their passes do not compete for one device.
    """
    with _lock:
        worker = _workers.setdefault(engine, ThreadPoolExecutor(1, "nabla"))
    call = functools.partial(contextvars.copy_context().run, function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(worker, call)


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
