"""The `fork` backend: a confined, warm interpreter that forks one child per check. It needs Linux with seccomp.

This is the host's side: it holds the clock, reads with caps, and asks for the kill. The other is `guest/zygote.py`.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox.execution import Status
from nabla_agents.sandbox.executor import Capabilities
from nabla_agents.sandbox.observation import REPORT_BYTES, Observation
from nabla_agents.sandbox.process import KILLED, GuestProcess, start
from nabla_agents.sandbox.program import Limits

PACKAGES = ("numpy", "sympy", "dateutil")
START = """
import json, sys
sys.path.insert(0, sys.argv[1])
from guest import zygote
del sys.path[0]
zygote.main(int(sys.argv[2]), **json.loads(sys.argv[3]))
"""
START_SECONDS, ANSWER_SECONDS = 60.0, 1.0
MESSAGE_BYTES = 64 << 10


class ForkWorker(GuestProcess):
    """One zygote. `packages` are loaded beside the standard library, where the host has them.

    SandboxError where it cannot be started.
    """

    def __init__(self, packages: Sequence[str] = PACKAGES) -> None:
        if not sys.platform.startswith("linux") or not sys.executable:
            raise SandboxError(f"The fork backend needs Linux and a Python executable; this is {sys.platform}.")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = _start(theirs.fileno(), packages)
        super().__init__(process, self._channel.close)

    def check(self, request: bytes, limits: Limits) -> Observation:
        started = time.monotonic()
        cpu_seconds = math.ceil(limits.cpu_seconds)
        header = json.dumps({"memory_bytes": limits.memory_bytes, "cpu_seconds": cpu_seconds}).encode()
        output, report = Capture(limits.output_bytes), Capture(limits.value_bytes + REPORT_BYTES)
        ended_by, end = None, None
        try:
            self._send(header, request, output, report)
            ended_by, end = self._watch(output, report, started + limits.wall_seconds)
        except OSError:  # the zygote is gone
            pass
        finally:
            output.close()
            report.close()
        fact, detail = _fact(ended_by, end, cpu_seconds)
        if end is None:
            if ended_by is None and self.was_killed():
                fact, detail = Status.UNAVAILABLE, f"the worker was {KILLED}"
            self.stop()
        return Observation(
            stdout=bytes(output.data),
            report=bytes(report.data),
            wall_seconds=time.monotonic() - started,
            fact=fact,
            detail=detail,
            cpu_seconds=end["cpu_seconds"] if end else 0.0,
            peak_bytes=end["peak_bytes"] if end else 0,
        )

    def _introduction(self) -> Capabilities:
        if not select.select([self._channel], [], [], START_SECONDS)[0]:
            raise SandboxError(f"The sandbox's interpreter did not start within {START_SECONDS:g} s.")
        try:
            message = self._channel.recv(MESSAGE_BYTES)
        except OSError as e:
            raise SandboxError("The sandbox's interpreter was ended while it started.") from e
        if not message:
            raise SandboxError(f"The sandbox's interpreter ended at its start, with exit code {self._process.wait()}.")
        greeting = json.loads(message)
        if "failed" in greeting:
            raise SandboxError(f"The sandbox could not be closed on this machine:\n{greeting['failed']}")
        return Capabilities(
            "fork", greeting["python_version"], frozenset(greeting["modules"]), tuple(greeting["layers"])
        )

    def _send(self, header: bytes, request: bytes, output: Capture, report: Capture) -> None:
        try:
            with _nameless_file() as file:
                file.write(request)
                file.seek(0)
                socket.send_fds(self._channel, [header], [file.fileno(), output.write_end, report.write_end])
        finally:
            output.hand_over()
            report.hand_over()

    def _watch(self, output: Capture, report: Capture, deadline: float) -> tuple[Status | None, dict[str, Any] | None]:
        """Why the host ended the check, if it did, and how the zygote says that it ended; None if it does not say."""
        ended_by: Status | None = None
        captures = {capture.read_end: capture for capture in (output, report)}
        poll = select.poll()
        for fd in (self._channel.fileno(), *captures):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
                if fd == self._channel.fileno():
                    return self._ending(ended_by, output, report)
                if not captures[fd].read() or captures[fd].full:
                    poll.unregister(fd)
            late, full = time.monotonic() >= deadline, output.full or report.full
            if late and ended_by is not None:
                return ended_by, None  # no answer to the kill
            if ended_by is None and (late or full):
                ended_by = Status.OUTPUT_LIMIT if full else Status.TIMEOUT
                self._channel.send(b"kill")
                deadline = time.monotonic() + ANSWER_SECONDS

    def _ending(
        self, ended_by: Status | None, output: Capture, report: Capture
    ) -> tuple[Status | None, dict[str, Any] | None]:
        message = self._channel.recv(MESSAGE_BYTES)
        output.read()  # the child is dead: what is left of its words is in the pipes
        report.read()
        if ended_by is None and (output.full or report.full):
            ended_by = Status.OUTPUT_LIMIT
        return ended_by, json.loads(message) if message else None


class Capture:
    """A pipe of which the host keeps no more than `cap` + 1 bytes, whoever else holds its other end."""

    def __init__(self, cap: int) -> None:
        self.data = bytearray()
        self._cap = cap
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)

    @property
    def full(self) -> bool:
        return len(self.data) > self._cap

    def read(self) -> bool:
        """Takes what is there, up to the cap; False at the end."""
        while not self.full:
            try:
                chunk = os.read(self.read_end, min(MESSAGE_BYTES, self._cap + 1 - len(self.data)))
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.data += chunk
        return True

    def hand_over(self) -> None:
        os.close(self.write_end)

    def close(self) -> None:
        os.close(self.read_end)


def _start(channel: int, packages: Sequence[str]) -> subprocess.Popen[bytes]:
    found = {package: _folder(package) for package in packages}
    settings = {
        "packages": [package for package, folder in found.items() if folder],
        "paths": sorted({folder for folder in found.values() if folder}),
    }
    root = str(Path(__file__).parent)
    return start(START, root, str(channel), json.dumps(settings), pass_fds=[channel], stdout=subprocess.DEVNULL)


def _nameless_file() -> IO[bytes]:
    """A file for a request; in memory, where this build of Python can."""
    return os.fdopen(os.memfd_create("request"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()


def _folder(package: str) -> str | None:
    """The folder that has to be on the path for the package, None where it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = spec.submodule_search_locations if spec else None
    return str(Path(next(iter(locations))).parent) if locations else None


def _fact(ended_by: Status | None, end: dict[str, Any] | None, cpu_seconds: int) -> tuple[Status | None, str]:
    """The status that follows from what the host and the kernel did, and why; none where the child just ended."""
    if ended_by is not None:
        return ended_by, "wall clock" if ended_by is Status.TIMEOUT else "more than its cap"
    if end is None:
        return Status.CRASHED, "the worker ended"
    code = -end["exit"]
    if code == signal.SIGXCPU or (code == signal.SIGKILL and end["cpu_seconds"] >= cpu_seconds):
        return Status.TIMEOUT, "processor time"
    if code == signal.SIGKILL:  # which the child can send nobody, itself included
        return Status.UNAVAILABLE, f"the program was {KILLED}"
    return (Status.CRASHED, f"signal {signal.Signals(code).name}") if code > 0 else (None, "")
