"""What both kinds of workers have in common: how their processes start, introduce themselves, and end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox.executor import Capabilities
from nabla_agents.sandbox.observation import Observation
from nabla_agents.sandbox.program import Limits

DEATH_SECONDS = 1.0  # from the end of its pipe to that of the process
KILLED = "killed from outside (SIGKILL)"
# Nothing of the host's own environment. One hash seed and one thread: the same program does the same in every worker.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}


class GuestProcess(ABC):
    """A process that runs checks, one at a time. It ends with this object, and with this process, however that dies.

    process: it leads a process group of its own. release: closes what the host holds of it, once it has ended.

    Raises:
        SandboxError: it does not introduce itself.
    """

    def __init__(self, process: subprocess.Popen[bytes], release: Callable[[], None]) -> None:
        self._process = process
        self._finalizer = weakref.finalize(self, _end, os.getpid(), process, release)
        try:
            self._capabilities = self._introduction()
        except BaseException:
            self.stop()
            raise

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def alive(self) -> bool:
        return self._finalizer.alive and self._process.poll() is None

    def was_killed(self) -> bool:
        """Whether somebody else ended it by SIGKILL, which no program within can send; waits a moment for its end."""
        if os.name != "posix" or not self._finalizer.alive:
            return False
        try:
            return self._process.wait(timeout=DEATH_SECONDS) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> None:
        """Ends it, whatever it does; may be called twice."""
        self._finalizer()

    @abstractmethod
    def check(self, request: bytes, limits: Limits) -> Observation:
        """What was seen of one run; raises nothing that the program could cause."""

    @abstractmethod
    def _introduction(self) -> Capabilities:
        """What the process says of itself when it is ready; SandboxError where it does not get there."""


def start(
    script: str, *arguments: str, pass_fds: Sequence[int], stdin: int = subprocess.DEVNULL, stdout: int
) -> subprocess.Popen[bytes]:
    """An interpreter started afresh: a fork of the host would inherit its threads' locks, and its secrets."""
    # Not -I, which would ignore the hash seed.
    command = [sys.executable, "-P", "-s", "-S", "-B", "-c", script, *arguments]
    try:
        return subprocess.Popen(
            command,
            env=environment(),
            pass_fds=pass_fds,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            process_group=0 if os.name == "posix" else None,
        )
    except OSError as e:
        raise SandboxError(f"The sandbox's interpreter cannot be started: {e}") from e


def environment() -> dict[str, str]:
    """All that a guest process gets of an environment."""
    inherited = ("LD_LIBRARY_PATH", "SYSTEMROOT")  # without these some installations of Python do not start
    return {**ENVIRONMENT, **{name: os.environ[name] for name in inherited if name in os.environ}}


def _end(owner: int, process: subprocess.Popen[bytes], release: Callable[[], None]) -> None:
    if os.getpid() == owner and process.poll() is None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    release()
