"""Who is done computing on a CPU keeps none of OpenMP's threads, lest those of others sleep."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nabla_agents import Engine
from nabla_agents.models.threads import _pause, release_threads

_TASKS = Path("/proc/self/task")

needs_openmp = pytest.mark.skipif(
    not _TASKS.exists() or _pause().__name__ != "omp_pause_resource_all", reason="needs Linux and OpenMP 5"
)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    release_threads()
    yield
    release_threads()
    torch.set_num_threads(before)


def computes() -> float:
    """Many elements: shared among OpenMP's threads."""
    return torch.ones(1 << 20).exp().sum().item()


def tasks() -> set[str]:
    """The process's threads."""
    return {task.name for task in _TASKS.iterdir()}


def ended(threads: set[str]) -> int:
    """How many of them are no more, after all the time that they need for it."""
    until = time.monotonic() + 5
    while threads & tasks() and time.monotonic() < until:
        time.sleep(0.01)
    return len(threads - tasks())


@needs_openmp
@pytest.mark.usefixtures("three_threads")
def test_threads_that_are_let_go_end_and_come_back() -> None:
    before = tasks()
    first = computes()
    started = tasks() - before
    release_threads()
    assert ended(started) >= 2
    before = tasks()
    assert computes() == first
    assert len(tasks() - before) >= 2


@needs_openmp
@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("batch", [False, True], ids=["one at a time", "batch"])
def test_an_answered_question_keeps_no_threads(batch: bool) -> None:
    engine = Engine.tiny()
    known = tasks()
    kept, done = [], threading.Event()

    def answer() -> None:
        prompt = "Tom has 5 apples and buys 7 more. How many apples does Tom have?"
        engine.generate_batch([prompt] * 2) if batch else engine.generate(prompt)
        team = tasks() - known - {str(threading.get_native_id())}
        kept.append(len(team) - ended(team))
        done.wait()

    asker = threading.Thread(target=answer)
    asker.start()
    while asker.is_alive() and not kept:
        time.sleep(0.01)
    done.set()
    asker.join()
    assert kept == [0]


def test_an_older_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: None) -> object:
        return object()

    _pause.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", missing)
    try:
        release_threads()
        assert _pause()(1) == 0
    finally:
        _pause.cache_clear()


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["nothing said", "spins", "policy"],
)
def test_commands_share_cores_before_torch_is_loaded(given: dict[str, str], spins: str) -> None:
    code = (
        "import os, sys; sys.argv = ['nabla', '--version']; from nabla_agents.cli import main\n"
        "try: main()\n"
        "finally: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **given})
    assert done.stdout.splitlines()[-1] == f"{spins} False", done.stderr
