"""One line per arm, seed and problem, written as soon as it is known; a run goes on from what is there."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from nabla_agents.errors import ConfigurationError, NablaError
from nabla_agents.json_text import read_json
from nabla_agents.types import Usage

Point = tuple[bool, float | None, float | None]
"""Whether the answer is right, its reward (None: not judged) and its log-likelihood in nats (None: not known)."""

_GROWING: Final = ("arms", "questions", "rewards")  # what may have more entries later
_HALVES: Final = re.compile("[\ud800-\udfff]")  # of surrogate pairs, which UTF-8 has not


@dataclass(frozen=True)
class Record:
    """What one arm made of one problem with one seed.

    `correct` is what was verified; `claimed`, what passes tests that run beside the answer, and counts as wrong.
    `question` is a hash of what was asked: problems of different seeds may be the same question. `pool_correct` says
    whether any completion that the search saw was correct: what a perfect reward could have chosen.
    `proposed` counts refinements, `accepted` those that were kept. `reward` is None where none judged. `curve` has for
    each rollout what would have been returned after it, and `costs` the generated tokens and FLOPs up to then; those of
    a batch are shared out evenly.
    """

    arm: str
    problem: int
    correct: bool
    pool_correct: bool
    text: str
    finish_reason: str
    usage: Usage
    reward: float | None = None
    log_likelihood: float | None = None
    proposed: int = 0
    accepted: int = 0
    seed: int = 0
    question: str = ""
    curve: tuple[Point, ...] = ()
    claimed: bool = False
    costs: tuple[tuple[float, float], ...] = ()

    @property
    def key(self) -> tuple[str, int, int]:
        """What no two records share."""
        return (self.arm, self.seed, self.problem)

    @property
    def case(self) -> tuple[str, int, int]:
        """What arms are compared on: a question with a seed, at its place."""
        return (self.question or str(self.problem), self.seed, self.problem)

    def as_line(self) -> str:
        """The record as JSON in UTF-8: what is no finite number is null, half a surrogate pair U+FFFD."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}
        return _HALVES.sub("\ufffd", json.dumps(values, ensure_ascii=False)) + "\n"

    @staticmethod
    def from_line(line: str) -> Record:
        """The record of a line.

        Raises:
            ValueError: it is none: a field is missing, unknown, of another type or below 0.
        """
        values = read_json(line)
        try:
            record: Record = _reader().validate_json(line, strict=True)
        except ValidationError as e:
            first = e.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        usage = values["usage"]
        for kind, given in ((Record, values), (Usage, usage)):
            if unknown := given.keys() - {f.name for f in fields(kind)}:
                raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
        counts = [record.problem, record.seed, record.proposed, record.accepted, *usage.values()]
        if not all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < math.inf for n in counts):
            raise ValueError("a count is no number of at least 0")
        return record


@cache
def _reader() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


class Store:
    """The records and settings of a folder.

    Raises:
        ConfigurationError: the folder's records were measured with other settings (the message names what differs), or
            the folder cannot be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._lines, self._settings = folder / "records.jsonl", folder / "settings.json"
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._go_on_with(json.loads(json.dumps(settings)))
            os.close(self._opened())
        except OSError as e:
            raise ConfigurationError(f"Cannot keep results in {folder} ({e}). Choose another --out.") from e

    def read(self) -> list[Record]:
        """Every record so far, the first of each arm, seed and problem; a line cut off while written is removed."""
        try:
            raw = self._lines.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                os.truncate(self._lines, len(whole))
        except OSError as e:
            raise ConfigurationError(f"{self._lines} cannot be read ({e}). Choose another --out.") from e
        records: dict[tuple[str, int, int], Record] = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):  # str.splitlines would split texts too
            try:
                record = Record.from_line(line.decode())
            except ValueError as e:
                raise ConfigurationError(
                    f"{self._lines}:{number} is no record ({e}). Remove the line or choose another --out."
                ) from e
            records.setdefault(record.key, record)
        return list(records.values())

    def append(self, record: Record) -> None:
        """Writes one line in one piece, so that an interrupt or a second process never splits it.

        Raises:
            NablaError: the disk is full, or the line cannot be written for another reason; no part of it stays.
        """
        line = record.as_line().encode()
        try:
            file = self._opened()
            try:
                size = os.fstat(file).st_size
                written = os.write(file, line)
                if written < len(line):
                    if os.fstat(file).st_size == size + written:  # else another process has written after it
                        os.ftruncate(file, size)
                    raise OSError(errno.ENOSPC, f"{written} of {len(line)} bytes were written")
            finally:
                os.close(file)
        except OSError as e:
            raise NablaError(
                f"A record was not kept in {self._lines} ({e}). Make room; the same command goes on from what is there."
            ) from e

    def _opened(self) -> int:
        return os.open(self._lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _go_on_with(self, settings: dict[str, Any]) -> None:
        """Equal settings go on; arms and seeds that are new are added."""
        old = self._read_settings() if self._settings.exists() else {}
        if differences := _differences(old, settings):
            raise ConfigurationError(
                f"{self._folder} holds results of other settings: {'; '.join(differences)}. Go on with the old "
                "settings, choose another --out, or remove the folder."
            )
        merged = {**old, **settings, **{name: {**old.get(name, {}), **settings.get(name, {})} for name in _GROWING}}
        partial = self._settings.with_suffix(".partial")
        partial.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._settings)

    def _read_settings(self) -> dict[str, Any]:
        try:
            settings = read_json(self._settings.read_bytes(), nan=True)
            if not isinstance(settings, dict):
                raise ValueError("no object")
            for name in _GROWING:
                if not isinstance(settings.get(name, {}), dict):
                    raise ValueError(f"{name} is no object")
        except ValueError as e:
            raise ConfigurationError(f"{self._settings} holds no settings ({e}). Choose another --out.") from e
        return settings


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Settings that both have and that differ, as `rollouts was 8, is 4`."""
    if isinstance(old, dict) and isinstance(new, dict):
        at_top = path in ("", *_GROWING)  # an arm may be new; a setting of an arm may not
        names = [name for name in new if name in old] if at_top else sorted({*old, *new})
        return [d for name in names for d in _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))]
    return [] if old == new else [f"{path} was {json.dumps(old)}, is {json.dumps(new)}"]
