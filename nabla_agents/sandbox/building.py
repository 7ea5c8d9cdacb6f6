"""Builds the `wasm` backend's component once per user and version: when asked to, or in the background on first use."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nabla_agents.errors import SandboxError
from nabla_agents.sandbox import artefact

SETTING = "NABLA_SANDBOX_BUILD"
COMPILE = """
import sys, wasmtime
from wasmtime.component import Component
config = wasmtime.Config()
config.consume_fuel = True
config.max_wasm_stack = 3 << 19
open(sys.argv[2], "wb").write(Component.from_file(wasmtime.Engine(config), sys.argv[1]).serialize())
"""
UNATTENDED = """
import sys
sys.path[:] = sys.argv[1:]
from nabla_agents.sandbox import building
building.build_unattended()
"""
_begun: list[subprocess.Popen[bytes]] = []  # by this process; kept, since they may outlive what began them


@dataclass(frozen=True)
class State:
    """What keeps the artefact from being used, and what to do; `message` is empty where nothing does.

    `missing`: a build could begin, and none of this version has failed before.
    """

    message: str = ""
    missing: bool = False


def build(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Builds the artefact unless it is there; `progress` is told each step. About a minute and 100 MB of disk.

    It waits for another process that builds it; an artefact that was changed, and those of older versions, are
    replaced. SandboxError where it cannot be built, or the tools are not installed.
    """
    with _locked(wait=True) as lock:
        assert lock is not None
        return _build(lock, progress)


def build_unattended() -> None:
    """Builds the artefact unless that is done or going on; a failure is left for `state` to tell."""
    if hasattr(os, "nice"):
        os.nice(10)
    with _locked(wait=False) as lock:
        if lock is not None:
            with contextlib.suppress(SandboxError):
                _build(lock, lambda _: None)


def begin() -> None:
    """Begins to build in the background, in a process of its own that goes on when this one ends.

    Nothing happens where the artefact is there or being built, where a build of this version failed before, where the
    tools are not installed, or with the environment variable NABLA_SANDBOX_BUILD=0.
    """
    if os.environ.get(SETTING) == "0" or not state().missing:
        return
    paths = [entry or os.getcwd() for entry in sys.path]
    with contextlib.suppress(OSError):
        _begun.append(
            subprocess.Popen(
                [sys.executable, "-c", UNATTENDED, *paths],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=Path(sys.executable).parent,
                start_new_session=os.name == "posix",
                creationflags=0x00000208 if os.name == "nt" else 0,  # detached, in a group of its own
            )
        )


def state() -> State:
    """Whether the artefact is there, is being built, could not be built, or what it lacks."""
    try:
        target = artefact.path()
        with contextlib.suppress(SandboxError):
            artefact.find()
            return State()
        with _locked(wait=False) as lock:
            if lock is None or any(process.poll() is None for process in _begun):
                step = (target.parent / "lock").read_text().strip() or "it begins"
                return State(f"The WebAssembly interpreter is being built, about a minute: {step}.")
    except (SandboxError, OSError) as e:
        return State(str(e))
    failed = target.with_suffix(".failed")
    if failed.is_file():
        return State(f"{failed.read_text().strip()} `nabla doctor --build` tries again.")
    off = f"; {SETTING}=0 keeps it from being built on first use" if os.environ.get(SETTING) == "0" else ""
    return State(f"The WebAssembly interpreter is not built yet: `nabla doctor --build`, about a minute{off}.", True)


def _build(lock: IO[str], progress: Callable[[str], None]) -> Path:
    """Builds, with the lock held; the lock's file says which step it is."""
    with contextlib.suppress(SandboxError):
        return artefact.find()
    failed = artefact.path().with_suffix(".failed")
    failed.unlink(missing_ok=True)
    for left in _cache().glob("build-*"):  # by a build that was killed
        shutil.rmtree(left, ignore_errors=True)

    def step(message: str) -> None:
        lock.seek(0)
        lock.truncate()
        lock.write(message)
        lock.flush()
        progress(message)

    try:
        with tempfile.TemporaryDirectory(prefix="build-", dir=_cache()) as scratch:
            step("1/2 freezing the interpreter and its modules")
            _componentize(Path(scratch))
            step("2/2 compiling it for this machine")
            _run([sys.executable, "-c", COMPILE, "app.wasm", "compiled"], scratch)
            return artefact.keep(Path(scratch) / "compiled")
    except (SandboxError, OSError) as e:
        message = str(e) if isinstance(e, SandboxError) else f"The WebAssembly interpreter could not be built: {e}"
        with contextlib.suppress(OSError):
            failed.write_text(message)
        raise SandboxError(message) from e


def _componentize(scratch: Path) -> None:
    (scratch / "guest").mkdir()
    for name in artefact.SOURCES:
        shutil.copy(artefact.GUEST / name, scratch / "guest" / name)
    (scratch / "app.py").write_text("from guest.wasm_app import WitWorld\n")
    for package in artefact.PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            source = next(iter(spec.submodule_search_locations))
            shutil.copytree(source, scratch / package, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        elif spec is not None and spec.origin:
            shutil.copy(spec.origin, scratch)
    script = "import sys, componentize_py; sys.exit(componentize_py.script())"
    command = [sys.executable, "-c", script, "--quiet", "--wit-path", "guest/program.wit"]
    _run([*command, "--world", "program", "componentize", "app", "--output", "app.wasm"], str(scratch))


def _run(command: list[str], cwd: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise SandboxError(f"The WebAssembly interpreter could not be built: {(done.stderr or done.stdout)[:2000]}")


def _cache() -> Path:
    """The folder of artefacts, which is made if need be; SandboxError where it cannot be, or others can write it."""
    cache = artefact.folder()
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise SandboxError(f"The WebAssembly interpreter has no place: {e}") from e
    artefact.refuse_foreign(cache)
    return cache


@contextlib.contextmanager
def _locked(*, wait: bool) -> Iterator[IO[str] | None]:
    """One build at a time: the lock's open file, or None if another process has it and nobody waits.

    Where there are no file locks, builds may race, and the last one stays.
    """
    with (_cache() / "lock").open("a+") as file:
        try:
            import fcntl
        except ImportError:
            yield file
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file
