"""The self-test: what an executor must have shown to contain on this machine before it gets an untrusted line."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox.execution import Execution, Status
from nabla_agents.sandbox.executor import Executor
from nabla_agents.sandbox.process import environment
from nabla_agents.sandbox.program import Limits, Program

LIMITS = Limits(
    fuel=1_000_000_000,
    cpu_seconds=1,
    wall_seconds=2.0,
    memory_bytes=64 << 20,
    output_bytes=8 << 10,
    value_bytes=8 << 10,
)
BRIEF = replace(LIMITS, wall_seconds=0.25)
LATE_SECONDS = 1.5  # beyond the limit; generous, for a machine that does other things as well

READ = """
import os
for look in (lambda: open({file!r}).read(), lambda: os.listdir({folder!r})):
    try:
        print(look())
    except OSError:
        pass
"""
SOCKETS = """
import socket
for family in (socket.AF_INET, socket.AF_UNIX):
    try:
        socket.socket(family)
        print("REACHED")
    except OSError:
        pass
"""
PROCESSES = """
import os, subprocess, threading
for start in (os.fork, lambda: subprocess.Popen(["true"]), threading.Thread(target=print).start):
    try:
        if start() == 0:
            os._exit(0)
        print("REACHED")
    except (AttributeError, OSError, RuntimeError):
        pass
"""
FORGERY = """
import os
for fd in range(64):
    try:
        os.write(fd, b"[" * 60000)
    except OSError:
        pass
os._exit(0)
"""
KERNEL = """
import ctypes, os
call = ctypes.CDLL(None).syscall
unshare, io_uring_setup = 272 if os.uname().machine == "x86_64" else 97, 425
if call(unshare, 0x10000000) == 0 or call(io_uring_setup, 1, ctypes.create_string_buffer(256)) >= 0:
    print("REACHED")
"""


@dataclass(frozen=True)
class Probe:
    """A program, and whether what came of it shows that `danger` is contained."""

    danger: str
    code: str
    contained: Callable[[Execution], bool]
    limits: Limits = LIMITS


def check(executor: Executor) -> None:
    """Returns if all is contained; SandboxError with the list of what is not. Takes about a second."""
    failures = list(uncontained(executor))
    if failures:
        raise SandboxError(
            f"The {executor.capabilities.backend} sandbox fails its self-test here: {'; '.join(failures)}."
        )


def uncontained(executor: Executor) -> Iterator[str]:
    """Every danger that was not contained, with what came of its probe."""
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-") as folder:
        for probe in probes(Path(folder)):
            done = executor.run(Program(probe.code), probe.limits)
            if not probe.contained(done):
                yield f"{probe.danger} ({done.status}: {done.detail or done.error_message or done.stdout[:40]!r})"
                if probe.danger == "harmless program":
                    return  # nothing else would say anything


def probes(folder: Path) -> list[Probe]:
    """The probes in their order, with their bait in `folder`."""
    token = secrets.token_hex(16)
    bait = folder / "bait"
    bait.mkdir(mode=0o755)
    secret, created = bait / secrets.token_hex(8), folder / "created"
    secret.write_text(token)
    folder.chmod(0o777)
    names = set(os.environ)
    late = BRIEF.wall_seconds + LATE_SECONDS
    read = READ.format(file=str(secret), folder=str(bait))
    twice = 2 * LIMITS.memory_bytes
    return [
        Probe("harmless program", "print(6 * 7)", lambda e: e.status is Status.OK and e.stdout == "42\n"),
        Probe("reading files", read, lambda e: token not in e.stdout and secret.name not in e.stdout),
        Probe("reading the environment", "import os; print(*os.environ)", lambda e: not names & _foreign(e)),
        Probe("writing files", f"open({str(created)!r}, 'w').write('x')", lambda e: not created.exists()),
        Probe("sockets", SOCKETS, _nothing_reached),
        Probe("processes and threads", PROCESSES, _nothing_reached),
        Probe(
            "endless loop", "while True: pass", lambda e: e.status is Status.TIMEOUT and e.wall_seconds < late, BRIEF
        ),
        Probe("memory", f"x = bytearray({twice}); print(len(x))", lambda e: e.status is Status.OOM),
        Probe("output", f"print('x' * {2 * LIMITS.output_bytes})", lambda e: e.status is Status.OUTPUT_LIMIT),
        Probe("state", "import math, builtins; math.pi = builtins.leak = 3", lambda e: e.status is Status.OK),
        Probe("left state", "import math; print(math.pi > 3, 'leak' in dir(__builtins__))", _nothing_left),
        Probe("forged reports", FORGERY, lambda e: e.status not in (Status.OK, Status.UNAVAILABLE)),
        Probe("kernel calls", KERNEL, _nothing_reached),
    ]


def _nothing_reached(done: Execution) -> bool:
    return "REACHED" not in done.stdout and done.status is not Status.UNAVAILABLE


def _nothing_left(done: Execution) -> bool:
    return done.stdout == "True False\n"


def _foreign(done: Execution) -> set[str]:
    """Environment names that were seen, but for those that every worker gets."""
    return set(done.stdout.split()) - set(environment()) - {"LC_CTYPE"}
