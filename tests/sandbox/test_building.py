"""The WebAssembly interpreter is built once, in the background, and every state of that can be told.

The tools are stand-ins, which write in a moment what takes the real ones a minute; `test_wasm.py` builds the real one.
"""

import fcntl
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nabla_agents import SandboxError, make_executor
from nabla_agents.cli import app
from nabla_agents.sandbox import artefact, backends, building

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders and locks of Linux")

FREEZE = """
import os, sys, time
def script():
    if os.path.exists({broken!r}):
        sys.exit("broken tool")
    open(sys.argv[sys.argv.index("--output") + 1], "w").write("component of " + " ".join(sorted(os.listdir("guest"))))
    while os.path.exists({held!r}):
        time.sleep(0.02)
"""
COMPILE = """
class Config: pass
class Engine:
    def __init__(self, config): assert config.consume_fuel
"""
COMPONENT = """
class Component:
    @staticmethod
    def from_file(engine, path):
        made = Component()
        made.text = open(path).read()
        return made
    def serialize(self): return ("compiled " + self.text).encode()
"""


class Tools:
    """Where the stand-ins are; `broken` and `held` are files that make them fail or wait while they exist."""

    def __init__(self, folder: Path) -> None:
        self.broken, self.held = folder / "broken", folder / "held"
        (folder / "componentize_py.py").write_text(FREEZE.format(broken=str(self.broken), held=str(self.held)))
        (folder / "wasmtime").mkdir()
        (folder / "wasmtime" / "__init__.py").write_text(COMPILE)
        (folder / "wasmtime" / "component.py").write_text(COMPONENT)
        for name in artefact.TOOLS:
            info = folder / f"{name.replace('-', '_')}-7.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 7.0\n")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tools]:
    """Stand-in tools and an empty cache of the user's, here and in every process that is started."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(building.SETTING, raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(building, "_begun", [])
    made = Tools(folder)
    yield made
    made.held.unlink(missing_ok=True)
    for process in building._begun:
        process.wait(60)


def eventually(true: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def test_the_first_use_builds_in_the_background_and_says_so(tools: Tools) -> None:
    assert building.state().missing
    tools.held.touch()
    building.begin()
    assert eventually(lambda: "being built, about a minute: 1/2 freezing" in building.state().message)
    building.begin()
    assert len(building._begun) == 1
    tools.held.unlink()
    assert eventually(lambda: building.state() == building.State())
    assert artefact.find().read_text().startswith("compiled component of __init__.py interpreter.py")
    building.begin()
    assert len(building._begun) == 1
    assert building._begun[0].wait(60) == 0
    assert sorted(f.suffix for f in artefact.folder().iterdir()) == ["", ".cwasm", ".sha256"]  # the first is the lock


def test_a_build_that_failed_is_told_and_not_begun_again(tools: Tools) -> None:
    tools.broken.touch()
    building.begin()
    assert eventually(lambda: "broken tool" in building.state().message)
    assert "`nabla doctor --build` tries again" in building.state().message
    building.begin()
    assert len(building._begun) == 1
    with pytest.raises(SandboxError, match="broken tool"):
        building.build()
    tools.broken.unlink()
    steps: list[str] = []
    assert building.build(steps.append) == artefact.find()
    assert [step[:3] for step in steps] == ["1/2", "2/2"]
    assert building.state() == building.State()
    assert not list(artefact.folder().glob("*.failed"))


def test_nothing_is_built_where_that_is_forbidden(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(building.SETTING, "0")
    building.begin()
    assert building._begun == []
    assert "NABLA_SANDBOX_BUILD=0" in building.state().message


def test_nothing_is_built_without_the_tools(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    building.begin()
    assert building._begun == []
    assert "pip install 'nabla-agents[sandbox]'" in building.state().message


def test_a_folder_that_cannot_be_made_is_told(tools: Tools, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    building.begin()
    assert building._begun == []
    assert "has no place" in building.state().message
    with pytest.raises(SandboxError, match="has no place"):
        building.build()


def test_one_process_builds_at_a_time(tools: Tools) -> None:
    building.state()  # makes the folder
    with (artefact.folder() / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("2/2 compiling")
        lock.flush()
        assert "being built, about a minute: 2/2 compiling" in building.state().message
        building.begin()
        assert building._begun == []
        with building._locked(wait=False) as mine:
            assert mine is None
    assert building.state().missing


def test_what_is_replaced_is_removed_and_what_others_use_stays(tools: Tools, tmp_path: Path) -> None:
    building.state()
    notes = {
        "old": f"x\n{sys.prefix}\n",
        "gone": f"x\n{tmp_path / 'no environment'}\n",
        "unsaid": "x",
        "theirs": f"x\n{tmp_path}\n",
    }
    files = {name: artefact.folder() / f"python-{name}.cwasm" for name in notes}
    for name, note in notes.items():
        files[name].write_bytes(b"native code")
        files[name].with_suffix(".sha256").write_text(note)
    (artefact.folder() / "build-killed").mkdir()
    assert {file.stem for file in artefact.stale()} == {"python-old", "python-gone", "python-unsaid"}
    [found] = [d for d in backends.diagnosis() if d.backend == "wasm"]
    assert [note.rpartition("python-")[2] for note in found.notes] == ["gone.cwasm", "old.cwasm", "unsaid.cwasm"]
    building.build()
    assert [file for file in files.values() if file.exists()] == [files["theirs"]]
    left = {f.name for f in artefact.folder().iterdir()}
    mine = artefact.path().stem
    assert left == {"lock", "python-theirs.cwasm", "python-theirs.sha256", f"{mine}.cwasm", f"{mine}.sha256"}


def test_an_artefact_that_was_changed_is_built_again(tools: Tools) -> None:
    built = building.build().read_bytes()
    artefact.path().write_bytes(b"other code")
    assert building.state().missing
    assert building.build().read_bytes() == built


def test_an_executor_is_had_at_once_and_the_build_begins(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    monkeypatch.setattr(building, "begin", lambda: begun.append(1))
    with make_executor(workers=1) as executor:
        assert executor.capabilities.backend == "fork"
    assert begun == [1]
    monkeypatch.setattr(backends, "BACKENDS", {"wasm": backends.BACKENDS["wasm"]})
    with pytest.raises(SandboxError, match=r"wasm: The WebAssembly interpreter is not built yet"):
        make_executor()


def test_doctor_says_what_is_built_and_what_is_stale(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {"wasm": backends.BACKENDS["wasm"]})
    building.state()
    (artefact.folder() / "python-old.cwasm").write_bytes(b"native code")
    done = CliRunner().invoke(app, ["doctor"])
    assert "not used: The WebAssembly interpreter is not built yet" in done.output
    assert "python-old.cwasm" in done.output
    tools.broken.touch()
    refused = CliRunner().invoke(app, ["doctor", "--build"])
    assert refused.exit_code == 2
    assert "broken tool" in refused.stderr
    assert "broken tool" in CliRunner().invoke(app, ["doctor"]).output
