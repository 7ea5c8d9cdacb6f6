"""The `wasm` backend's component in the user's cache; nothing binary is shipped, `building.py` makes it.

It is native code, so it is loaded only from a folder that nobody else can write, and only with the checksum noted when
it was built.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from nabla_agents.errors import SandboxError, to_install
from nabla_agents.user_cache import cache_folder

GUEST = Path(__file__).with_name("guest")
SOURCES = ("__init__.py", "interpreter.py", "preload.py", "program.wit", "wasm_app.py")
PACKAGES = {"sympy": "sympy", "mpmath": "mpmath", "dateutil": "python-dateutil", "six": "six"}  # module: distribution
TOOLS = ("componentize-py", "wasmtime")


def folder() -> Path:
    """Where artefacts are kept: the user's cache folder."""
    return cache_folder("sandbox")


def path() -> Path:
    """The artefact for these versions and sources, whether it is there or not. SandboxError without the extra."""
    key = hashlib.sha256(platform.machine().encode())
    for name in TOOLS:
        try:
            key.update(importlib.metadata.version(name).encode())
        except importlib.metadata.PackageNotFoundError as e:
            raise SandboxError(f"{name} is not installed: {to_install('sandbox')}.") from e
    for distribution in PACKAGES.values():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            key.update(f"{distribution} {importlib.metadata.version(distribution)}".encode())
    for name in SOURCES:
        key.update((GUEST / name).read_bytes())
    return folder() / f"python-{key.hexdigest()[:20]}.cwasm"


def find() -> Path:
    """The artefact, ready to be loaded; SandboxError where it is not there, or could be somebody else's."""
    found = path()
    if not found.is_file():
        raise SandboxError("The WebAssembly interpreter is not built yet.")
    refuse_foreign(found.parent)
    if _note(found)[0] != checksum(found):
        raise SandboxError(f"{found} is not what was built; `nabla doctor --build` replaces it.")
    return found


def keep(compiled: Path) -> Path:
    """Moves what was built to its place, and removes what it replaces."""
    target = path()
    target.with_suffix(".sha256").write_text(f"{checksum(compiled)}\n{sys.prefix}\n")
    compiled.replace(target)
    for old in stale():
        for file in (old, old.with_suffix(".sha256"), old.with_suffix(".failed")):
            with contextlib.suppress(OSError):
                file.unlink()
    return find()


def stale() -> list[Path]:
    """Artefacts that nobody uses: of other versions than this environment has now, or of environments that are gone."""
    current = path()
    owners = {file: _note(file)[1] for file in sorted(folder().glob("python-*.cwasm")) if file != current}
    return [file for file, owner in owners.items() if owner in ("", sys.prefix) or not Path(owner).is_dir()]


def refuse_foreign(cache: Path) -> None:
    """SandboxError for a folder that others can write."""
    if os.name == "posix":
        facts = cache.stat()
        if facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise SandboxError(f"{cache} can be written by others: make it yours alone (chmod 700).")


def checksum(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _note(artefact: Path) -> tuple[str, str]:
    """The checksum of an artefact, and the environment that built it; empty where that was not noted."""
    try:
        lines = artefact.with_suffix(".sha256").read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    checksum, environment, *_ = [*lines, "", ""]
    return checksum, environment
