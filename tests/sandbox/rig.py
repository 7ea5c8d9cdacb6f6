"""Runs hostile lines in a process of its own, looks for effects outside, and prints one JSON verdict a line.

    python rig.py BACKEND SCRATCH [--hazards] [CATEGORY ...]

It is started by `test_corpus.py`, which bounds and ends it. Nothing that could harm the machine runs unless `--hazards`
is given and the self-test is clean; forking lines run last.
"""

import ctypes
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nabla_agents.sandbox import Capabilities, Execution, Executor, Limits, Program, Status, backends

DATA = Path(__file__).parent.parent / "data" / "sandbox"
HARMLESS_EVEN_OPEN = {"files", "network", "process"}  # unless a hazard is named
HAZARDS = [None, "memory", "kills", "disk", "processes"]  # in this order
EXTRA_SECONDS = {"fork": 0.5, "wasm": 0.5, "open": 0.5}
LIMITS = {
    "fork": Limits(wall_seconds=1.0, cpu_seconds=5, memory_bytes=200 << 20),
    "wasm": Limits(wall_seconds=10.0, fuel=8_000_000_000, memory_bytes=200 << 20),
    "open": Limits(wall_seconds=5.0),
}
PLACEHOLDER = re.compile(r"@@(\d+)\*(.)@@|@@([A-Z_]+)@@", re.DOTALL)
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Line:
    """A hostile program and what may come of it, as the file has it."""

    id: str
    category: str
    code: str
    statuses: list[str]
    must_not: str
    stdout_never: list[str]
    effects_never: list[str]
    fixtures: list[str]
    hazard: str | None


def lines() -> list[Line]:
    """All lines, those that could harm an open machine last."""
    found = [Line(**json.loads(text)) for text in (DATA / "adversarial.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda line: HAZARDS.index(line.hazard))


def filled(code: str, values: dict[str, str]) -> str:
    """The code with its placeholders replaced; KeyError for an unknown one."""
    return PLACEHOLDER.sub(lambda m: m[2] * int(m[1]) if m[1] else values[m[3]], code)


class Bait:
    """What a program must not reach: files, sockets, a variable of the environment. Made in the folder `scratch`."""

    def __init__(self, scratch: Path) -> None:
        self.token, other = secrets.token_hex(16), secrets.token_hex(8)
        self.hits = 0
        self._secret, self._writable, self._home = scratch / "secret", scratch / "writable", Path.cwd()
        self._victim = scratch / "victim"
        self._secret.mkdir()
        self._writable.mkdir()
        self._writable.chmod(0o777)
        (self._secret / "file").write_text(self.token)
        (self._secret / other).write_text("x")
        self._victim.write_text("alive")
        self.never_seen = [self.token, other]
        os.environ["SANDBOX_SECRET"] = self.token
        abstract = "\0" + secrets.token_hex(8)
        tcp = self._listening(socket.AF_INET, ("127.0.0.1", 0))
        udp = self._listening(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)
        self._listening(socket.AF_UNIX, str(scratch / "listener"))
        self._listening(socket.AF_UNIX, abstract)
        self.values = {
            "SECRET_FILE": str(self._secret / "file"),
            "SECRET_DIR": str(self._secret),
            "WRITABLE_DIR": str(self._writable),
            "VICTIM_FILE": str(self._victim),
            "TCP_PORT": str(tcp.getsockname()[1]),
            "UDP_PORT": str(udp.getsockname()[1]),
            "UNIX_SOCKET": str(scratch / "listener"),
            "ABSTRACT_SOCKET": abstract[1:],
        }

    def _listening(self, family: int, address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        threading.Thread(target=self._count, args=(listener, kind), daemon=True).start()
        return listener

    def _count(self, listener: socket.socket, kind: int) -> None:
        while True:
            reached = listener.accept() if kind == socket.SOCK_STREAM else listener.recv(1)
            self.hits += bool(reached)

    def state(self) -> dict[str, Any]:
        """What a program could have changed, by the name of the effect."""
        files = [self._secret / "file", self._victim]
        folders = [self._secret, self._writable, self._home]
        return {
            "file_created": [sorted(os.listdir(folder)) for folder in folders],
            "file_changed": [f.exists() and (f.read_text(), f.stat().st_mode) for f in files],
            "listener_hit": self.hits,
            "mount_made": Path("/proc/self/mounts").read_text(),
        }


class OpenExecutor:
    """Deliberately no sandbox at all: what the checks must catch."""

    capabilities = Capabilities("open", sys.version, frozenset(sys.stdlib_module_names), ())

    def run(self, program: Program, limits: Limits = Limits()) -> Execution:
        command = [sys.executable, "-c", program.code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limits.wall_seconds)
        status = Status.CRASHED if done.returncode < 0 else Status.ERROR if done.returncode else Status.OK
        return Execution(status, stdout=done.stdout, error_message=done.stderr)

    def run_many(self, programs: list[Program], limits: Limits = Limits()) -> list[Execution]:
        return [self.run(program, limits) for program in programs]

    def close(self) -> None: ...


def descendants() -> list[tuple[int, int, bytes]]:
    """(process, parent, command) of all processes below this one; orphans come to it, as it is their subreaper."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            parents[int(folder.name)] = (int(parent), (folder / "cmdline").read_bytes(), state)
        except OSError:
            continue
    below = {os.getpid()}
    while more := {pid for pid, (parent, _, _) in parents.items() if parent in below} - below:
        below |= more
    for pid in below - {os.getpid()}:
        parent, command, state = parents[pid]
        if state != "Z":
            found.append((pid, parent, command))
    return found


def strangers() -> int:
    """How many processes there are besides the executor's one worker."""
    mine = [p for p in descendants() if p[1] == os.getpid() and (b"guest" in p[2])]
    return len(descendants()) - min(1, len(mine))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def broken_rules(line: Line, executor: Executor, bait: Bait, backend: str) -> Iterator[str]:
    """Every rule of the corpus that the run of this line broke."""
    limits = LIMITS[backend]
    before, resident, started = bait.state(), resident_bytes(), time.monotonic()
    try:
        done = executor.run(Program(filled(line.code, bait.values)), limits)
    except Exception as e:
        yield f"raised {e!r}"
        return
    seconds = time.monotonic() - started
    if done.status not in line.statuses:
        yield f"status {done.status}: {done.error_type} {done.error_message} {done.detail}"
    if seconds > limits.wall_seconds + EXTRA_SECONDS[backend]:
        yield f"took {seconds:.2f} s"
    said = done.stdout + json.dumps([done.values, done.error_type, done.error_message, done.detail])
    if any(text in done.stdout for text in line.stdout_never) or any(text in said for text in bait.never_seen):
        yield f"said {said[:200]!r}"
    if done.ok and (done.stdout.strip() == "42" or done.values == (42,)):
        yield "judged_correct"
    if resident_bytes() - resident > 50 << 20:
        yield f"host grew by {(resident_bytes() - resident) >> 20} MiB"
    if backend != "open" and strangers():
        yield "process_left"
    if executor.run(Program("print(6 * 7)"), limits).stdout != "42\n":
        yield "the next check failed"
    after = bait.state()
    yield from (effect for effect in after if after[effect] != before[effect])


def main(backend: str, scratch: str, *options: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    bait = Bait(Path(scratch))
    # `proven` runs the self-test and raises: no line of the corpus is run by a sandbox that does not contain it.
    executor = OpenExecutor() if backend == "open" else backends.proven(backends.BACKENDS[backend], workers=1)
    categories = set(options) - {"--hazards"}
    chosen = [line for line in lines() if line.hazard is None or "--hazards" in options]
    chosen = [line for line in chosen if not categories or line.category in categories]
    if backend == "open":
        chosen = [line for line in chosen if line.hazard is None and line.category in HARMLESS_EVEN_OPEN]
    for line in chosen:
        print(json.dumps([line.id, list(broken_rules(line, executor, bait, backend))]), flush=True)
    executor.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
