"""The sandboxes that rewards share: each is started by the first verdict that needs it, and ends with the process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import Executor, make_executor
from nabla_agents.sandbox.backends import proven
from nabla_agents.sandbox.cache import CachedExecutor
from nabla_agents.sandbox.fork import ForkWorker

RETRY_SECONDS = 30.0


class SharedExecutor:
    """An executor made once, on first use. A failure to make it is raised again for half a minute, since a self-test
    takes a second, and then it is tried again: the machine may have been short of memory, or too busy.

    A process that was forked makes one of its own: the pipes to the workers are its parent's.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Executor | SandboxError | None = None
        self._failed_at = 0.0
        self._owner = os.getpid()

    def __call__(self) -> Executor:
        """The executor; SandboxError where there is none."""
        if self._owner != os.getpid():  # forked: another thread of the parent may have held the lock
            self._lock, self._made, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            made = self._made
            if isinstance(made, SandboxError) and time.monotonic() - self._failed_at > RETRY_SECONDS:
                made = None
            if made is None:
                try:
                    made = self._make()
                except SandboxError as e:
                    made, self._failed_at = e, time.monotonic()
            self._made = made
        if isinstance(made, SandboxError):
            raise made
        return made


def _math_checker() -> Executor:
    """An interpreter that holds math-verify and runs our checker only, never a program."""
    return CachedExecutor(proven(partial(ForkWorker, packages=("math_verify",)), workers=1), 4096)


programs = SharedExecutor(make_executor)
math_checker = SharedExecutor(_math_checker)
