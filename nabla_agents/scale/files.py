"""Rows in files: JSON lines and Parquet, read whole, and written at once or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nabla_agents.errors import ConfigurationError

Row = dict[str, Any]
COMPLETION, ABOUT = "completion", "nabla"  # the fields that results have


def read_rows(file: Path) -> list[Row]:
    """The rows of a `.jsonl` or `.parquet` file.

    Raises:
        ConfigurationError: it cannot be read, a line is no JSON object, or a field has a name that results have.
    """
    kind = kind_of(file)
    try:
        rows = _parquet_rows(file) if kind == ".parquet" else read_lines(file)
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"{file} cannot be read ({e}).") from e
    for i, row in enumerate(rows):
        for name in (COMPLETION, ABOUT):
            if name in row:
                raise ConfigurationError(f"Row {i} of {file} has a field {name!r}, which results have; rename it.")
    return rows


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes all rows; the file is there when they all are. In Parquet the field `nabla` is JSON text."""
    if kind_of(file) == ".jsonl":
        replace_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    arrow, parquet = _arrow()
    flat = [{**row, ABOUT: json.dumps(row[ABOUT])} for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    unfinished = file.with_name(file.name + ".unfinished")
    parquet.write_table(arrow.table({name: [row.get(name) for row in flat] for name in names}), unfinished)
    os.replace(unfinished, file)


def replace_text(file: Path, text: str) -> None:
    """Writes a file whole: who reads it sees the old one or the new one."""
    unfinished = file.with_name(file.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, file)


def kind_of(file: Path) -> str:
    """The suffix of a file of rows.

    Raises:
        ConfigurationError: another one.
    """
    if file.suffix not in (".jsonl", ".parquet"):
        raise ConfigurationError(f"{file} ends in {file.suffix!r}; expected .jsonl or .parquet.")
    if file.suffix == ".parquet":
        _arrow()
    return file.suffix


def read_lines(file: Path) -> list[Row]:
    """The rows of a file of JSON lines; a line ends at a line feed and nowhere else.

    Raises:
        ConfigurationError: a line is no JSON object.
    """
    rows: list[Row] = []
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ConfigurationError(f"Line {number} of {file} is no JSON ({e}).") from e
            if not isinstance(row, dict):
                raise ConfigurationError(f"Line {number} of {file} is {line.strip()[:80]}; expected a JSON object.")
            rows.append(row)
    return rows


def _parquet_rows(file: Path) -> list[Row]:
    arrow, parquet = _arrow()
    try:
        return parquet.read_table(file).to_pylist()
    except arrow.ArrowInvalid as e:
        raise ConfigurationError(f"{file} is no Parquet file ({e}).") from e


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ConfigurationError(
            f'Parquet needs {e.name}, which is not installed: pip install "nabla-agents[ray]".'
        ) from e
    return pyarrow, pyarrow.parquet
