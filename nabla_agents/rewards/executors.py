"""The sandboxes that rewards share: each is started by the first verdict that needs it, and ends with the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import Executor, make_executor
from nabla_agents.sandbox.backends import proven
from nabla_agents.sandbox.cache import CachedExecutor
from nabla_agents.sandbox.fork import ForkWorker


class SharedExecutor:
    """An executor made once, on first use; a failure to make it is remembered and raised again.

    A process that was forked makes one of its own: the pipes to the workers are its parent's.
    """

    def __init__(self, make: Callable[[], Executor]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: Executor | SandboxError | None = None
        self._owner = os.getpid()

    def __call__(self) -> Executor:
        """The executor; SandboxError where there is none."""
        if self._owner != os.getpid():  # forked: another thread of the parent may have held the lock
            self._lock, self._made, self._owner = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._made is None:
                try:
                    self._made = self._make()
                except SandboxError as e:
                    self._made = e
        if isinstance(self._made, SandboxError):
            raise self._made
        return self._made


def _math_checker() -> Executor:
    """An interpreter that holds math-verify and runs our checker only, never a program."""
    return CachedExecutor(proven(partial(ForkWorker, packages=("math_verify",)), workers=1), 4096)


programs = SharedExecutor(make_executor)
math_checker = SharedExecutor(_math_checker)
