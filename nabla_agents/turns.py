"""Whose turn it is: an engine does one operation at a time, whoever asks, from threads or from async code."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from nabla_agents.engine import Engine

ResultT = TypeVar("ResultT")

_MOST = 32  # requests to a server at a time
_lock = threading.Lock()
_turns: WeakKeyDictionary[Engine, threading.RLock] = WeakKeyDictionary()
_workers: WeakKeyDictionary[Engine, ThreadPoolExecutor] = WeakKeyDictionary()


def turn(engine: Engine) -> AbstractContextManager[Any]:
    """The lock under which the engine works, so that callers' passes do not compete for one device."""
    if not engine.takes_turns:
        return nullcontext()
    with _lock:
        return _turns.setdefault(engine, threading.RLock())


async def on_worker(engine: Engine, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Awaits a function that runs on the engine's worker thread, one of several where callers need not wait for each
    other, in the caller's context.
    """
    with _lock:
        worker = _workers.setdefault(engine, ThreadPoolExecutor(1 if engine.takes_turns else _MOST, "nabla"))
    call = functools.partial(contextvars.copy_context().run, function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(worker, call)
