"""Rows in files: JSON lines and Parquet, read whole, and written at once or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from nabla_agents.errors import ConfigurationError, NablaError, to_install
from nabla_agents.json_text import MOST_DEPTH, too_deep

Row = dict[str, Any]
COMPLETION, ABOUT = "completion", "nabla"  # the fields that results have
_HALVES: Final = re.compile("[\ud800-\udfff]")  # of surrogate pairs, which UTF-8 has not


class _Unread(Row):
    """A row that has only its error, in the field that results have for it."""


def read_rows(file: Path) -> list[Row]:
    """The rows of a `.jsonl` or `.parquet` file; for a line that is nested too deeply, a row of its error alone.

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
            if name in row and not isinstance(row, _Unread):
                raise ConfigurationError(f"Row {i} of {file} has a field {name!r}, which results have; rename it.")
    return rows


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes all rows; the file is there when they all are. In Parquet the field `nabla` is JSON text, and so is one
    for which Arrow has no type.

    Raises:
        NablaError: the disk is full, or the file cannot be written for another reason; nothing is there then.
    """
    kind = kind_of(file)
    try:
        if kind == ".jsonl":
            replace_text(file, "".join(map(_line, rows)))
        else:
            _write_parquet(file, rows)
    except OSError as e:
        raise NablaError(
            f"{file} cannot be written ({e}). What is finished is kept: make room, and run the same job again."
        ) from e


def replace_text(file: Path, text: str) -> None:
    """Writes a file whole: who reads it sees the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except OSError:
        with suppress(OSError):  # its room may be needed
            unfinished.unlink()
        raise


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
    """The rows of a file of JSON lines; a line ends at a line feed and nowhere else. For one that is nested too deeply
    there is a row of its error alone.

    Raises:
        ConfigurationError: a line is no JSON object in UTF-8.
    """
    with file.open("rb") as lines:
        return [_row(line, number, file) for number, line in enumerate(lines, 1) if line.strip()]


def _row(line: bytes, number: int, file: Path) -> Row:
    deep = _Unread({ABOUT: {"error": f"Line {number} is nested more than {MOST_DEPTH} levels deep."}})
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as e:
        raise ConfigurationError(f"{file} cannot be read: line {number} is no UTF-8 ({e}).") from e
    except RecursionError:
        return deep
    except ValueError as e:
        raise ConfigurationError(f"Line {number} of {file} is no JSON ({e}).") from e
    if not isinstance(row, dict):
        shown = line.decode().strip()[:80]
        raise ConfigurationError(f"Line {number} of {file} is {shown}; expected a JSON object.")
    return deep if too_deep(row) else cast(Row, row)


def _line(row: Row) -> str:
    """A row as a line of JSON; what JSON has not, such as a date of a Parquet file, as text."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return (json.dumps(row, default=str) if _HALVES.search(text) else text) + "\n"


def _write_parquet(file: Path, rows: Iterable[Row]) -> None:
    arrow, parquet = _arrow()
    flat = [{**row, ABOUT: json.dumps(row[ABOUT])} for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    table = arrow.table({_storable(name): _column(arrow, [row.get(name) for row in flat]) for name in names})
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        parquet.write_table(table, unfinished)
        os.replace(unfinished, file)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _column(arrow: Any, values: Sequence[Any]) -> Any:
    storable = [_storable(value) for value in values]
    try:
        return arrow.array(storable)
    except (arrow.ArrowException, OverflowError, TypeError):  # several kinds of values, or numbers of more than 64 bits
        return arrow.array([None if value is None else json.dumps(value, default=str) for value in storable])


def _storable(value: Any) -> Any:
    """The value with U+FFFD for halves of surrogate pairs, which Arrow's texts have not."""
    if isinstance(value, str):
        return _HALVES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(k): _storable(v) for k, v in cast(dict[Any, Any], value).items()}
    return [_storable(v) for v in cast(list[Any], value)] if isinstance(value, list) else value


def _parquet_rows(file: Path) -> list[Row]:
    arrow, parquet = _arrow()
    try:
        return parquet.read_table(file).to_pylist()
    except arrow.ArrowException as e:
        raise ConfigurationError(f"{file} is no Parquet file ({e}).") from e


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ConfigurationError(f"Parquet needs {e.name}, which is not installed: {to_install('ray')}.") from e
    return pyarrow, pyarrow.parquet
