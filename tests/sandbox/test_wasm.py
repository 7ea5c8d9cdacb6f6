"""The WebAssembly backend. What needs its interpreter is slow: that is built first, once per user and version."""

import importlib.metadata
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nabla_agents import Executor, Limits, Program, SandboxError, Status
from nabla_agents.sandbox import artefact, backends, building
from nabla_agents.sandbox.wasm import WasmWorker
from nabla_agents.sandbox.workers import WorkerPool

LIMITS = Limits(fuel=2_000_000_000, wall_seconds=10.0, memory_bytes=128 << 20)


@pytest.fixture(scope="module")
def wasm() -> Iterator[Executor]:
    pytest.importorskip("wasmtime")
    pytest.importorskip("componentize_py")
    building.build()
    with backends.proven(WasmWorker, workers=2) as executor:
        yield executor


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the user's, with an artefact's name in it."""
    monkeypatch.setattr(artefact, "folder", lambda: tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    tmp_path.chmod(0o700)
    return artefact.path()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SandboxError, match=r"nabla-agents\[sandbox\]"):
        WasmWorker()


def test_an_artefact_that_is_not_built_is_not_built_in_passing(cache: Path) -> None:
    with pytest.raises(SandboxError, match="not built yet"):
        artefact.find()
    assert "nabla doctor --build" in building.state().message


def test_an_artefact_that_was_changed_is_not_loaded(cache: Path) -> None:
    cache.write_bytes(b"native code")
    with pytest.raises(SandboxError, match="not what was built"):
        artefact.find()
    cache.with_suffix(".sha256").write_text(artefact.checksum(cache))
    assert artefact.find() == cache
    cache.write_bytes(b"other code")
    with pytest.raises(SandboxError, match="not what was built"):
        artefact.find()


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_an_artefact_that_others_can_write_is_not_loaded(cache: Path) -> None:
    cache.write_bytes(b"native code")
    cache.with_suffix(".sha256").write_text(artefact.checksum(cache))
    cache.parent.chmod(0o777)
    with pytest.raises(SandboxError, match="written by others"):
        artefact.find()


def test_other_versions_are_other_artefacts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2")
    assert artefact.path() != cache


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestBuilt:
    def test_every_hostile_line_is_contained(self, wasm: Executor, verdicts: Callable[..., Any], rig: Any) -> None:
        broken = verdicts("wasm", "--hazards")
        assert set(broken) == {line.id for line in rig.lines()}
        assert {name: rules for name, rules in broken.items() if rules} == {}

    def test_harmless_programs_print_what_cpython_prints(
        self, wasm: Executor, rig: ModuleType, coverage: Callable[[Executor], int]
    ) -> None:
        assert coverage(wasm) >= 47

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("", Status.OK),
            ("1 / 0", Status.ERROR),
            ("x = 1\0", Status.ERROR),
            ("# \udcff", Status.ERROR),
            ("import sys; sys.stdout.close()", Status.OK),
            ("import sys; del sys.stdout", Status.OK),
            ("import sys; print('x', file=sys.stderr)", Status.OK),
            ("import os; os.write(2, b'x')", Status.OK),
            ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", Status.ERROR),
            ("import builtins; builtins.__dict__.clear(); x", Status.ERROR),
            ("raise BaseException", Status.ERROR),
            ("def f(): f()\nf()", Status.ERROR),
            ("import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()", Status.ERROR),
            ("input()", Status.ERROR),
            ("import os; os._exit(0)", Status.CRASHED),
            ("import posix; posix.write(1, b'x')", Status.CRASHED),
            ("bytearray(10 ** 9)", Status.OOM),
            ("'x' * (1 << 40)", Status.OOM),
            ("import numpy", Status.UNSUPPORTED),
            ("import asyncio", Status.UNSUPPORTED),
            ("import ctypes", Status.UNSUPPORTED),
            ("import guest", Status.ERROR),
            ("while True: pass", Status.TIMEOUT),
            ("10 ** 10 ** 10", Status.TIMEOUT),
            ("while True: print('x' * 1000)", Status.OUTPUT_LIMIT),
            ("try: print('x' * 10 ** 6, flush=True)\nexcept BaseException: pass", Status.OUTPUT_LIMIT),
        ],
    )
    def test_what_a_program_does_has_a_status(self, wasm: Executor, code: str, status: Status) -> None:
        done = wasm.run(Program(code), LIMITS)
        assert done.status is status, done
        assert wasm.run(Program("print(6 * 7)")).stdout == "42\n"

    def test_time_passes_at_once(self, wasm: Executor) -> None:
        done = wasm.run(Program("import time; time.sleep(600); print('woke')"))
        assert done.stdout == "woke\n"

    def test_the_same_program_uses_the_same_fuel(self, wasm: Executor) -> None:
        """So a verdict does not depend on the load of the machine."""
        program = Program("import random; print(sorted(random.random() for _ in range(1000))[0], set('abcdef'))")
        first, second = wasm.run(program), wasm.run(program)
        assert (first.fuel, first.stdout) == (second.fuel, second.stdout)

    def test_values_inputs_and_standard_input(self, wasm: Executor) -> None:
        program = Program("def f(x): return [x * n, {'é': 1.5}]", entry="f", calls=[[1], [2]], inputs={"n": 21})
        assert wasm.run(program).values == ([21, {"é": 1.5}], [42, {"é": 1.5}])
        done = wasm.run(Program("print(open(0).read().split(), '\\xe9')", stdin="a b"))
        assert done.stdout == "['a', 'b'] é\n"
        assert wasm.run(Program("import sys; sys.stdout.buffer.write(b'\\xff!')")).stdout == "\ufffd!"

    def test_a_returned_forgery_is_a_crash(self, wasm: Executor) -> None:
        """The app itself can be reached from inside; what it then returns is still only a claim."""
        code = "import gc\nfor o in gc.get_objects():\n    if getattr(o, '__name__', '') == 'execute': o.__code__ = "
        done = wasm.run(Program(code + "(lambda request: '[' * 9999).__code__"))
        assert done.status in (Status.CRASHED, Status.OK)
        code = 'import json; json.dumps = lambda *a, **k: \'{"stdout": 3, "report": []}\''
        assert wasm.run(Program(code)).status is Status.CRASHED

    @pytest.mark.parametrize(
        "code",
        [
            "print(len(str(10**5000)), int('9' * 5000) == 10**5000 - 1)",
            "print(len(str(10**30000)) - 25000, int('9' * 30000) == 10**30000 - 1)",
        ],
    )
    def test_whole_numbers_of_any_length_have_a_text(self, wasm: Executor, code: str) -> None:
        """From thousands of digits on a module of Python's own computes it, which must have been loaded before."""
        assert wasm.run(Program(code)).stdout == "5001 True\n"

    def test_a_program_whose_worker_is_killed_is_run_once_more(self) -> None:
        with WorkerPool(WasmWorker, workers=1) as pool:
            process = pool._idle[0]._process  # type: ignore[attr-defined]
            threading.Timer(0.05, process.kill).start()
            done = pool.run(Program("sum(range(10**7)); print(6 * 7)"), Limits(fuel=10**12, wall_seconds=30))
            assert (done.status, done.stdout) == (Status.OK, "42\n")
            assert pool.run(Program("print(6 * 7)")).stdout == "42\n"
            assert pool.restarts == 1

    def test_a_killed_host_leaves_nothing_running(self, wasm: Executor, orphans: Callable[[str], list[int]]) -> None:
        """In the middle of a program with fuel for hours."""
        assert orphans("wasm") == []

    def test_the_wall_clock_ends_what_fuel_does_not(self, wasm: Executor) -> None:
        started = time.monotonic()
        done = wasm.run(Program("while True: pass"), Limits(fuel=10**13, wall_seconds=0.5))
        assert (done.status, done.detail) == (Status.TIMEOUT, "wall clock")
        assert time.monotonic() - started < 5

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp is Linux")
    def test_the_worker_is_confined_itself(self, wasm: Executor) -> None:
        assert {"wasm", "seccomp", "no_new_privs"} <= set(wasm.capabilities.layers)
        assert wasm.capabilities.deterministic
