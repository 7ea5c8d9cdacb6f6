"""The `wasm` backend: CPython as a WebAssembly component, a fresh instance per check, in a confined worker process.

Verdicts depend on fuel, not on the machine's load. It needs the extra `[sandbox]` and an artefact that was built once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, Any

from nabla_agents.errors import SandboxError, to_install
from nabla_agents.sandbox import artefact
from nabla_agents.sandbox.execution import Status
from nabla_agents.sandbox.executor import Capabilities
from nabla_agents.sandbox.observation import REPORT_BYTES, Observation
from nabla_agents.sandbox.process import KILLED, GuestProcess, start
from nabla_agents.sandbox.program import Limits

START = """
import sys
sys.path[:0] = sys.argv[1:3]
from guest import wasm_worker
wasm_worker.main(sys.argv[3], int(sys.argv[4]) if sys.argv[4:] else None)
"""
START_SECONDS = 60.0
LONGEST_ESCAPE = 6  # characters of JSON for one byte
LARGEST_REPLY_BYTES = 64 << 20
WALL_CLOCK, ENDED = "wall clock", "the worker ended"
TRAPS = {
    WALL_CLOCK: Status.TIMEOUT,
    KILLED: Status.UNAVAILABLE,
    "all fuel consumed": Status.TIMEOUT,
    "reply too long": Status.OUTPUT_LIMIT,
    "unreachable": Status.OOM,  # how the interpreter aborts
}
RECURSION = (
    b'{"status": "error", "error_type": "RecursionError", "error_message": "call stack exhausted", "values": []}'
)


class WasmWorker(GuestProcess):
    """One worker process. SandboxError where it cannot be started."""

    def __init__(self) -> None:
        process, lifeline = _start(artefact.find())
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(process.stdout, self._replies), daemon=True).start()
        super().__init__(process, partial(_release, process, lifeline))

    def check(self, request: bytes, limits: Limits) -> Observation:
        started = time.monotonic()
        reply: dict[str, Any] = {"trap": ENDED}
        try:
            self._send(request, limits)
            reply = self._replies.get(timeout=limits.wall_seconds) or reply
        except queue.Empty:
            reply = {"trap": WALL_CLOCK}  # it computes, or waits: in either case it cannot be asked to end
        except OSError:
            pass
        if reply.get("trap") == ENDED and self.was_killed():
            reply = {"trap": KILLED}
        if reply.get("trap") in (WALL_CLOCK, ENDED, KILLED):
            self.stop()
        return _observation(reply, time.monotonic() - started)

    def _introduction(self) -> Capabilities:
        try:
            greeting = self._replies.get(timeout=START_SECONDS)
        except queue.Empty:
            greeting = None
        if not greeting:
            raise SandboxError("The WebAssembly worker does not start here; remove its artefact and build it again.")
        return Capabilities(
            "wasm",
            greeting["python_version"],
            frozenset(greeting["modules"]),
            tuple(greeting["layers"]),
            deterministic=True,
        )

    def _send(self, request: bytes, limits: Limits) -> None:
        room = LONGEST_ESCAPE * (limits.output_bytes + limits.value_bytes + REPORT_BYTES)
        job = {
            "request": request.decode("ascii"),
            "fuel": limits.fuel,
            "memory_bytes": limits.memory_bytes,
            "reply_characters": min(room, LARGEST_REPLY_BYTES // LONGEST_ESCAPE - REPORT_BYTES),
        }
        text = json.dumps(job).encode("ascii")
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack("=I", len(text)) + text)
        self._process.stdin.flush()


def _start(component: Path) -> tuple[subprocess.Popen[bytes], int | None]:
    """The worker and, on Linux, the end of a pipe that keeps it alive: a computing worker sees no end of file."""
    runtime = importlib.util.find_spec("wasmtime")
    if runtime is None or runtime.origin is None:
        raise SandboxError(f"wasmtime is not installed: {to_install('sandbox')}.")
    theirs, ours = os.pipe() if sys.platform.startswith("linux") else (None, None)
    lifeline = [] if theirs is None else [theirs]
    paths = [str(Path(__file__).parent), str(Path(runtime.origin).parent.parent)]
    try:
        worker = start(
            START,
            *paths,
            str(component),
            *map(str, lifeline),
            pass_fds=lifeline,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    except SandboxError:
        _close(ours)
        raise
    finally:
        _close(theirs)
    return worker, ours


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _listen(stream: IO[bytes], replies: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Passes every reply on, then None: a thread, since not every system can wait for a pipe with a limit of time."""
    with stream:
        while len(head := stream.read(4)) == 4:
            (size,) = struct.unpack("=I", head)
            if size > LARGEST_REPLY_BYTES:
                break
            replies.put(_decoded(stream.read(size)))
    replies.put(None)


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(text)
        return reply if isinstance(reply, dict) else {}
    except Exception:  # only a worker that was taken over sends such
        return {}


def _observation(reply: dict[str, Any], seconds: float) -> Observation:
    """What the worker tells of a run: the runtime's traps and fuel are facts, the text that was returned is a claim."""
    stdout, report, fact, detail = b"", b"", None, ""
    if "trap" in reply:
        trap = str(reply["trap"])
        detail = trap.strip().rpartition("\n")[2].strip()
        fact = next((status for words, status in TRAPS.items() if words in trap), Status.CRASHED)
        if "call stack exhausted" in trap:
            fact, report = None, RECURSION
    else:
        with contextlib.suppress(Exception):  # a program may have made its interpreter return anything
            returned = json.loads(reply["returned"])
            stdout, report = returned["stdout"].encode("latin-1"), returned["report"].encode()
    return Observation(
        stdout, report, seconds, fact, detail, cpu_seconds=reply.get("cpu_seconds", 0.0), fuel=reply.get("fuel")
    )


def _release(process: subprocess.Popen[bytes], lifeline: int | None) -> None:
    _close(lifeline)
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
