"""The `wasm` backend's component: built once into the user's cache, about a minute; nothing binary is shipped.

It is native code, so it is loaded only from a folder that nobody else can write, and only with the checksum noted when
it was built.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from nabla_agents.errors import SandboxError

GUEST = Path(__file__).with_name("guest")
SOURCES = ("__init__.py", "interpreter.py", "preload.py", "program.wit", "wasm_app.py")
PACKAGES = {"sympy": "sympy", "mpmath": "mpmath", "dateutil": "python-dateutil", "six": "six"}  # module: distribution
TOOLS = ("componentize-py", "wasmtime")
COMPILE = """
import sys, wasmtime
from wasmtime.component import Component
config = wasmtime.Config()
config.consume_fuel = True
config.max_wasm_stack = 3 << 19
open(sys.argv[2], "wb").write(Component.from_file(wasmtime.Engine(config), sys.argv[1]).serialize())
"""


def folder() -> Path:
    """Where artefacts are kept: the user's cache folder."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nabla-agents" / "sandbox"


def path() -> Path:
    """The artefact for these versions and sources, whether it is there or not. SandboxError without the extra."""
    key = hashlib.sha256(platform.machine().encode())
    for name in TOOLS:
        try:
            key.update(importlib.metadata.version(name).encode())
        except importlib.metadata.PackageNotFoundError as e:
            raise SandboxError(f"{name} is not installed: pip install 'nabla-agents[sandbox]'.") from e
    for distribution in PACKAGES.values():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            key.update(f"{distribution} {importlib.metadata.version(distribution)}".encode())
    for name in SOURCES:
        key.update((GUEST / name).read_bytes())
    return folder() / f"python-{key.hexdigest()[:20]}.cwasm"


def find() -> Path:
    """The artefact, ready to be loaded; SandboxError where it was not built, or could be somebody else's."""
    found = path()
    if not found.is_file():
        raise SandboxError("The WebAssembly interpreter is not built yet: `nabla doctor --build`, about a minute.")
    _refuse_foreign(found.parent)
    noted = found.with_suffix(".sha256")
    if not noted.is_file() or noted.read_text() != _checksum(found):
        raise SandboxError(f"{found} is not what was built: remove it, then `nabla doctor --build`.")
    return found


def build(progress: Callable[[str], None] = lambda _: None) -> Path:
    """Builds the artefact unless it is there; `progress` is told each step. About a minute and 100 MB of disk."""
    target = path()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(target.parent)
    with _alone(target.parent / "lock"):
        if target.is_file():
            return find()
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            progress("1/2 freezing the interpreter and its modules")
            _componentize(Path(scratch))
            progress("2/2 compiling it for this machine")
            compiled = Path(scratch) / "compiled"
            _run([sys.executable, "-c", COMPILE, "app.wasm", compiled.name], scratch)
            target.with_suffix(".sha256").write_text(_checksum(compiled))
            compiled.replace(target)
    return find()


def _componentize(scratch: Path) -> None:
    (scratch / "guest").mkdir()
    for name in SOURCES:
        shutil.copy(GUEST / name, scratch / "guest" / name)
    (scratch / "app.py").write_text("from guest.wasm_app import WitWorld\n")
    for package in PACKAGES:
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


def _refuse_foreign(cache: Path) -> None:
    if os.name == "posix":
        facts = cache.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise SandboxError(f"{cache} can be written by others: make it yours alone (chmod 700).")


def _checksum(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One build at a time; where there are no file locks, builds may race, and the last one stays."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
