"""Engines behind the models: loaded once per process and settings, shared by copies, driven from async code."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

if TYPE_CHECKING:
    from nabla_agents import Engine, Step, Strategy

ResultT = TypeVar("ResultT")

_lock = threading.RLock()
_loaded: dict[tuple[tuple[str, Any], ...], Engine] = {}
_shared: WeakValueDictionary[str, Engine] = WeakValueDictionary()
_workers: WeakKeyDictionary[Engine, ThreadPoolExecutor] = WeakKeyDictionary()


def loaded(model: str, **loading: Any) -> Engine:
    """The engine of these settings, loaded by the first call of the process and kept to its end."""
    key = (("model", model), *sorted(loading.items()))
    if key in _loaded:
        return _loaded[key]
    with _lock:
        if key not in _loaded:
            from nabla_agents import Engine

            _loaded[key] = Engine.tiny(**loading) if model == "tiny" else Engine(model=model, **loading)
        return _loaded[key]


class SharedEngine:
    """Stands for an engine in a pickle, which holds no weights: unpickled in the same process, it is that engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __reduce__(self) -> tuple[Callable[[str], Engine], tuple[str]]:
        with _lock:
            token = next((t for t, e in _shared.items() if e is self._engine), None) or uuid.uuid4().hex
            _shared[token] = self._engine
        return _engine_of, (token,)


def _engine_of(token: str) -> Engine:
    engine = _shared.get(token)
    if engine is None:
        raise RuntimeError(
            "This model was given an engine object, which stays in its process; the pickle was read in another one (or "
            "the engine is gone). Build the model there, or give it a model name instead: that is loaded where needed."
        )
    return engine


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
