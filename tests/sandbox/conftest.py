"""The rig that runs hostile lines: its module, and a run of it within bounds that hold if the sandbox does not."""

import importlib.util
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nabla_agents import Executor, Limits, Program, Status
from nabla_agents.sandbox import backends

ROOT = Path(__file__).resolve().parents[2]
RIG = Path(__file__).with_name("rig.py")
# What is about processes, and about the backend that needs Linux.
collect_ignore = [] if sys.platform.startswith("linux") else ["test_corpus.py", "test_hostile.py", "test_workers.py"]
SILENT_SECONDS = 60
HOST = """
import sys
from nabla_agents import Limits, Program
from nabla_agents.sandbox import backends
from nabla_agents.sandbox.workers import WorkerPool
pool = WorkerPool(backends.BACKENDS[sys.argv[1]], workers=1)
print(pool._idle[0]._process.pid, flush=True)
pool.run(Program("while True: pass"), Limits(fuel=10**14, wall_seconds=600, cpu_seconds=600))
"""
COVERAGE_LIMITS = Limits(fuel=100_000_000_000, cpu_seconds=10, wall_seconds=10.0, memory_bytes=512 << 20)


@pytest.fixture(scope="session")
def rig() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sandbox_rig", RIG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fork() -> Iterator[Executor]:
    """A proven `fork` executor without memory, for all tests of a run."""
    with backends.proven(backends.BACKENDS["fork"], workers=2) as executor:
        yield executor


@pytest.fixture
def coverage(rig: ModuleType) -> Callable[[Executor], int]:
    """How many harmless programs print what CPython prints; the others must be unsupported, and lack a module."""

    def count(executor: Executor) -> int:
        cases = [json.loads(text) for text in (rig.DATA / "coverage.jsonl").read_text().splitlines()]
        done = executor.run_many([Program(case["code"]) for case in cases], COVERAGE_LIMITS)
        for case, execution in zip(cases, done, strict=True):
            if execution.status is Status.UNSUPPORTED:
                assert not set(case["modules"]) <= executor.capabilities.modules, (case["id"], execution)
            else:
                assert (execution.status, execution.stdout) == (Status.OK, case["stdout"]), (case["id"], execution)
        return sum(execution.ok for execution in done)

    return count


@pytest.fixture
def running_in() -> Callable[[int, float], list[int]]:
    """The processes of a process group that still run after so many seconds; less when all have ended before."""

    def find(group: int, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        while (found := members(group)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    return find


def members(group: int) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, process_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.fixture
def orphans(running_in: Callable[[int, float], list[int]]) -> Callable[[str], list[int]]:
    """What still runs ten seconds after a host was killed in the middle of a program without end."""

    def left(backend: str) -> list[int]:
        command, environment = [sys.executable, "-c", HOST, backend], {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as host:
            assert host.stdout is not None
            group = int(host.stdout.readline())
            time.sleep(1)  # the program runs by then
            assert running_in(group, 0)
            host.kill()
        found = running_in(group, 10)
        for process in found:
            os.kill(process, signal.SIGKILL)
        return found

    return left


@pytest.fixture
def verdicts(tmp_path: Path) -> Callable[..., dict[str, list[str]]]:
    """Runs the rig; the broken rules of each line that it ran."""

    def run(backend: str, *options: str) -> dict[str, list[str]]:
        scratch, home = tmp_path / "scratch", tmp_path / "home"
        scratch.mkdir()
        home.mkdir()
        command = [sys.executable, str(RIG), backend, str(scratch), *options]
        if backend == "open":
            command = [*throw_away(), *command]
        process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=bounded,
        )
        try:
            return dict(map(json.loads, spoken(process)))
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    return run


def throw_away() -> list[str]:
    """A prefix for commands: namespaces that end with them, where the machine has such."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--ipc"]
    usable = shutil.which("unshare") and subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    return unshare if usable else []


def bounded() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def spoken(process: subprocess.Popen[str]) -> list[str]:
    """All lines of its output; fails after a minute without one, or when it ends badly."""
    said: queue.Queue[str | None] = queue.Queue()
    stdout, stderr = process.stdout, process.stderr
    assert stdout is not None
    assert stderr is not None

    def listen() -> None:
        for line in stdout:
            said.put(line)
        said.put(None)

    threading.Thread(target=listen, daemon=True).start()
    lines: list[str] = []
    while (line := said.get(timeout=SILENT_SECONDS)) is not None:
        lines.append(line)
    assert process.wait(SILENT_SECONDS) == 0, stderr.read()
    return lines
