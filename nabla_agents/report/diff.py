"""What changed from one text to another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

_WORDS: Final = re.compile(r"\d+|[^\W\d]+|\s|[^\w\s]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
_MOST_CHARACTERS: Final = 5_000  # beyond which texts are compared line by line: the time grows with the square


@dataclass(frozen=True)
class Diff:
    """Two texts in pieces: (old, new) are equal where nothing changed, and either may be empty.

    `similarity` is the share of words, or of lines in long texts, that both have, in [0, 1].
    """

    pieces: tuple[tuple[str, str], ...]
    similarity: float

    @staticmethod
    def of(old: str, new: str) -> Diff:
        unit = _WORDS if max(len(old), len(new)) < _MOST_CHARACTERS else _LINES
        before, after = unit.findall(old), unit.findall(new)
        matcher = SequenceMatcher(None, before, after, autojunk=False)
        pieces = tuple(("".join(before[i:j]), "".join(after[k:m])) for _, i, j, k, m in matcher.get_opcodes())
        return Diff(pieces, matcher.ratio())
