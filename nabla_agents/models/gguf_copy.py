"""A GGUF file's model as a folder that transformers loads in seconds: unpacked once, kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nabla_agents.errors import ModelLoadError, to_install
from nabla_agents.models.gguf_header import GgufHeader
from nabla_agents.models.gguf_unpacking import refuse_unknown, unpack
from nabla_agents.user_cache import cache_folder

_FORMAT = 1  # raised whenever `unpack` writes something else for the same file
_NOTE = "copy.json"
_PACKAGES = ("gguf", "accelerate")
_TRANSFORMERS = (5, 22)  # the first that reads the files of the tests
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GgufCopy:
    """A folder of the cache: which file it was made of and when, and its size in bytes.

    `source` is empty where the folder is not a whole copy: one that is being made, or whose making was cut off.
    """

    folder: Path
    source: str
    dtype: str
    size: int
    made: datetime

    @classmethod
    def of(cls, folder: Path) -> GgufCopy:
        note = _note(folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        made = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        return cls(folder, str(note.get("source", "")), str(note.get("dtype", "")), size, made)


def gguf_copy(file: Path, dtype: torch.dtype | None) -> tuple[Path, torch.dtype]:
    """The folder of a file's copy, made now if there is none, and the type that its weights are to be loaded in: the
    one asked for, or the file's own.

    A copy has the precision that is asked for, and never more than the file's: float32 for quantised weights, which
    half precision would round, unless that is what is loaded. It is found by the hash of the file, whatever its name.

    Raises:
        ModelLoadError: packages are missing, the file is no whole GGUF file, transformers cannot read its architecture,
            or there is no room for the copy. All this before anything is unpacked.
    """
    require_packages()
    header = GgufHeader.read(file)
    refuse_unknown(file, header)
    dtype = own_dtype(header) if dtype is None else dtype
    kept = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    with file.open("rb") as opened:
        home = cache_folder("gguf") / hashlib.file_digest(opened, "sha256").hexdigest()
    for each in dict.fromkeys((kept, torch.float32)):
        if _whole(folder := home / _name(each)):
            return folder, dtype
    try:
        return _made(file, header, home, kept), dtype
    except OSError as e:
        if isinstance(e, ModelLoadError):
            raise
        raise ModelLoadError(
            f"The unpacked copy of {str(file)!r} cannot be written to {home} ({e}). Make room there, or set "
            "XDG_CACHE_HOME to a folder that can be written."
        ) from e


def copies() -> list[GgufCopy]:
    """What the cache holds, oldest first."""
    folders = [folder for folder in cache_folder("gguf").glob("*/*") if folder.is_dir()]
    return sorted(map(GgufCopy.of, folders), key=lambda copy: copy.made)


def clear_copies() -> int:
    """Removes every copy; the bytes that this frees."""
    freed = sum(copy.size for copy in copies())
    shutil.rmtree(cache_folder("gguf"), ignore_errors=True)
    return freed


def _made(file: Path, header: GgufHeader, home: Path, dtype: torch.dtype) -> Path:
    """Unpacks beside the place of the copy and moves it there whole, so that no torn one is ever found."""
    home.mkdir(parents=True, exist_ok=True)
    needed, free = header.weights * dtype.itemsize, shutil.disk_usage(home).free
    if needed > free:
        raise ModelLoadError(
            f"Unpacking {str(file)!r} takes {needed / 1e9:.1f} GB in {home}, where {free / 1e9:.1f} GB are free. Make "
            "room (`nabla cache clear`), set XDG_CACHE_HOME to another disk, or load with dtype='bfloat16'."
        )
    _log.info("Unpacking %s, once (%.1f GB)", file.name, needed / 1e9)
    target = home / _name(dtype)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=home) as made:
        partial = Path(made) / "copy"
        partial.mkdir()
        unpack(file, header, partial, dtype)
        note = {"source": str(file.resolve()), "dtype": _short(dtype), "files": _sizes(partial)}
        (partial / _NOTE).write_text(json.dumps(note), encoding="utf-8")
        if not _whole(target):  # else another process was faster, and may be reading it
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.suppress(FileExistsError):
                partial.rename(target)
    _remove_outdated(home, dtype)
    _log.info("Loading %s", file.name)
    return target


def _remove_outdated(home: Path, dtype: torch.dtype) -> None:
    """Copies in this precision by other versions of transformers or of this package."""
    for folder in home.glob(f"{_short(dtype)}-*"):
        if folder.name != _name(dtype):
            shutil.rmtree(folder, ignore_errors=True)


def _name(dtype: torch.dtype) -> str:
    """transformers learns to read more of a file with time, so its version counts."""
    return f"{_short(dtype)}-{_FORMAT}-transformers-{version('transformers')}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _whole(folder: Path) -> bool:
    note = _note(folder)
    return bool(note) and note.get("files") == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != _NOTE}


def _note(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def own_dtype(header: GgufHeader) -> torch.dtype:
    """The type in which a file's weights are kept, bfloat16 for quantised ones, as llama.cpp's `general.file_type`."""
    return {0: torch.float32, 1: torch.float16}.get(int(header.fields.get("general.file_type", -1)), torch.bfloat16)


def require_packages() -> None:
    """Raises ModelLoadError where a package that reads GGUF files is missing, or too old."""
    missing = []
    for name in _PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ModelLoadError(
            f"A GGUF file is read with {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: {to_install('gguf')}."
        )
    if tuple(map(int, (found := version("transformers")).split(".")[:2])) < _TRANSFORMERS:
        least = ".".join(map(str, _TRANSFORMERS))
        raise ModelLoadError(f"GGUF files need transformers {least} or newer, this is {found}: {to_install('gguf')}.")
