"""Readers: what clients send is read off the event loop, within a time, one piece of each caller at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from nabla_agents.serve.errors import invalid, shutting_down

ResultT = TypeVar("ResultT")

_THREADS: Final = 4  # so that as many callers are read at a time


class Readers:
    """Threads for templates, tokenizers, schemas and grammars. Used on the event loop alone."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(_THREADS, "nabla-read")
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}  # of callers, with how many are in it or wait for it
        self._closed = False

    async def read(self, caller: str, function: Callable[[], ResultT]) -> ResultT:
        """The function's result. One that has no end keeps its thread, and its caller's turn.

        Raises:
            Refusal: 400 where it took too long, 503 after `close`; and what the function raises.
        """
        lock = self._enter(caller)
        try:
            await lock.acquire()
        except asyncio.CancelledError:
            self._leave(caller)
            raise
        if self._closed:
            self._done(caller, lock)
            raise shutting_down()
        reading = asyncio.get_running_loop().run_in_executor(self._pool, function)
        reading.add_done_callback(lambda _: self._done(caller, lock))
        ended, _ = await asyncio.wait([reading], timeout=self._seconds)
        if not ended:
            reading.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen: nobody waits for it
            message = f"What the request has took longer than {self._seconds:g} s to read. Make it smaller."
            raise invalid(message, None, code="too_complex")
        if reading.cancelled():
            raise shutting_down()
        return reading.result()

    @property
    def busy(self) -> bool:
        return bool(self._turns)

    def close(self) -> None:
        """Reads nothing from now on; does not wait for what is read."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _enter(self, caller: str) -> asyncio.Lock:
        lock, count = self._turns.get(caller) or (asyncio.Lock(), 0)
        self._turns[caller] = lock, count + 1
        return lock

    def _leave(self, caller: str) -> None:
        lock, count = self._turns.pop(caller)
        if count > 1:
            self._turns[caller] = lock, count - 1

    def _done(self, caller: str, lock: asyncio.Lock) -> None:
        lock.release()
        self._leave(caller)
