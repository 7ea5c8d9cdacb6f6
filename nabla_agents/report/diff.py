"""What changed from one text to another."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

_WORDS: Final = re.compile(r"\d+|[^\W\d]+|\s|[^\w\s]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
_MOST_CHARACTERS: Final = 5_000  # beyond which texts are compared line by line
_COMPARED: Final = 20_000  # pairs of words up to which difflib, whose time grows with the cube, compares two texts
_COMPARED_WITHIN: Final = 900  # the same between anchors, of which there may be many
_LEVELS: Final = 8  # of anchors between anchors

Match = tuple[int, int, int]
"""Where equal words begin in the one and in the other, and how many they are."""


@dataclass(frozen=True)
class Diff:
    """Two texts in pieces: (old, new) are equal where nothing changed, and either may be empty.

    `similarity` is the share of words, or of lines in long texts, that both have, in [0, 1]. The time is n log n: what
    is long and has nothing to hold on to, no word that occurs once in both, counts as replaced.
    """

    pieces: tuple[tuple[str, str], ...]
    similarity: float

    @staticmethod
    def of(old: str, new: str) -> Diff:
        unit = _WORDS if max(len(old), len(new)) < _MOST_CHARACTERS else _LINES
        before, after = unit.findall(old), unit.findall(new)
        matches = _matches(before, after)
        pieces = tuple(("".join(b), "".join(a)) for b, a in _pieces(before, after, matches))
        both, total = sum(size for *_, size in matches), len(before) + len(after)
        return Diff(pieces, 2 * both / total if total else 1.0)


def _pieces(
    before: Sequence[str], after: Sequence[str], matches: Sequence[Match]
) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """What changed before each match, and the match; what is empty on both sides is left out."""
    i = j = 0
    for start, other, size in [*matches, (len(before), len(after), 0)]:
        if i < start or j < other:
            yield before[i:start], after[j:other]
        if size:
            yield before[start : start + size], after[other : other + size]
        i, j = start + size, other + size


def _matches(before: Sequence[str], after: Sequence[str]) -> list[Match]:
    """Equal runs, in order: common ends first, then what lies between them by its anchors, or word by word."""
    found: list[Match] = []
    todo = [(0, len(before), 0, len(after), 0)]
    while todo:
        i, i_end, j, j_end, level = todo.pop()
        head = common(before[i:i_end], after[j:j_end])
        tail = common(before[i + head : i_end][::-1], after[j + head : j_end][::-1])
        found += [(i, j, head), (i_end - tail, j_end - tail, tail)]
        i, i_end, j, j_end = i + head, i_end - tail, j + head, j_end - tail
        if i == i_end or j == j_end:
            continue
        if (i_end - i) * (j_end - j) <= (_COMPARED_WITHIN if level else _COMPARED):
            matcher = SequenceMatcher(None, before[i:i_end], after[j:j_end], autojunk=False)
            found += [(i + block.a, j + block.b, block.size) for block in matcher.get_matching_blocks()]
        elif level < _LEVELS and (anchors := _anchors(before[i:i_end], after[j:j_end])):
            starts = [(i, j), *((i + a, j + b) for a, b in anchors)]
            ends = [*starts[1:], (i_end, j_end)]
            todo += [(a, a_end, b, b_end, level + 1) for (a, b), (a_end, b_end) in zip(starts, ends, strict=True)]
    return _joined(sorted(match for match in found if match[2]))


def _joined(matches: Sequence[Match]) -> list[Match]:
    """Matches that follow each other at once, as one."""
    joined: list[Match] = []
    for i, j, size in matches:
        if joined and (joined[-1][0] + joined[-1][2], joined[-1][1] + joined[-1][2]) == (i, j):
            joined[-1] = (*joined[-1][:2], joined[-1][2] + size)
        else:
            joined.append((i, j, size))
    return joined


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words, or characters, both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _anchors(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """The places of words that occur once in both, as many as have the same order in both (patience diff)."""
    once_before, once_after = Counter(before), Counter(after)
    places = {word: j for j, word in enumerate(after) if once_after[word] == 1}
    pairs = [(i, places[word]) for i, word in enumerate(before) if once_before[word] == 1 and word in places]
    ends: list[int] = []  # the least place at which an increasing run of each length ends
    last: list[int] = []  # the pair that it ends with
    previous: list[int] = []  # the pair before each pair in its run
    for n, (_, j) in enumerate(pairs):
        at = bisect_left(ends, j)
        ends[at : at + 1], last[at : at + 1] = [j], [n]
        previous.append(last[at - 1] if at else -1)
    run: list[tuple[int, int]] = []
    n = last[-1] if last else -1
    while n >= 0:
        run.append(pairs[n])
        n = previous[n]
    return run[::-1]
