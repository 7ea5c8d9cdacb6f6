"""Rows of like length in one pass: padding is computed too, and it is not what is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

ENOUGH = 256  # tokens with which a pass is worth its overhead
_LEAST_SHARE = 0.85  # of the longest row of a group that every other has


def by_length(
    lengths: Sequence[int], operation: Callable[..., list[ResultT]], *columns: Sequence[Any]
) -> list[ResultT]:
    """The operation's results in the order of the rows, computed in groups of like length.

    A row begins another group where it is much shorter than the longest, once the group has `ENOUGH`
    tokens; `lengths` are the tokens that each row reads.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or (lengths[i] < _LEAST_SHARE * longest and len(groups[-1]) * longest >= ENOUGH):
            groups.append([])
        groups[-1].append(i)
    if len(groups) == 1:
        return operation(*columns)
    results: dict[int, ResultT] = {}
    for group in groups:
        results.update(zip(group, operation(*([column[i] for i in group] for column in columns)), strict=True))
    return [results[i] for i in range(len(lengths))]
