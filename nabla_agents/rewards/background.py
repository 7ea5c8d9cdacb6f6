"""A call on a thread of its own: what may hang is waited for, never joined."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """A call that runs while the caller goes on.

    The thread is a daemon: one that hangs neither holds the process open nor can it be ended; it is left behind. A C
    call that keeps the interpreter's lock (a backtracking `re` search) stops every thread and cannot be waited out.
    """

    def __init__(self, call: Callable[[], T], *, then: Callable[[], object] = lambda: None) -> None:
        """`then` is called on the thread when the call has ended."""
        self._call, self._then = call, then
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run,), daemon=True, name=f"reward {call!r}").start()

    @property
    def running(self) -> bool:
        return not self._done.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended, waiting for `seconds` (None: as long as it takes)."""
        return self._done.wait(None if seconds is None else max(0.0, seconds))

    def result(self, seconds: float | None = None) -> T:
        """What the call returned, or raises what it raised.

        Raises:
            TimeoutError: it is still running after `seconds` more.
        """
        if not self.wait(seconds):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value[0]

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as e:
            self._error = e
        self._done.set()
        self._then()


def side_by_side(
    calls: Sequence[Callable[[], T]], *, seconds: float, workers: int, hanging: int
) -> list[Background[T]]:
    """The calls in order, each of them ended or `running` for longer than `seconds`; `workers` run at a time.

    A call that takes too long is left behind, and the next one begins. Once `hanging` of them are, the rest is not
    begun and left out.
    """
    one_ended = threading.Semaphore(0)
    begun: list[Background[T]] = []
    waited_for: list[tuple[Background[T], float]] = []  # with its deadline; the earliest is the first
    left_behind = 0
    while True:
        free = workers - len(waited_for) if left_behind < hanging else 0
        following = [Background(call, then=one_ended.release) for call in calls[len(begun) : len(begun) + free]]
        deadline = time.monotonic() + seconds  # those that begin together are late together
        begun += following
        waited_for += [(call, deadline) for call in following]
        if not waited_for:
            return begun
        one_ended.acquire(timeout=max(0.0, waited_for[0][1] - time.monotonic()))
        running = [(call, deadline) for call, deadline in waited_for if call.running]
        waited_for = [(call, deadline) for call, deadline in running if time.monotonic() < deadline]
        left_behind += len(running) - len(waited_for)
