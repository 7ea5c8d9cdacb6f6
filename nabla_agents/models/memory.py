"""Batches that do not fit into memory: the same rows, in halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from nabla_agents.types import Usage

ResultT = TypeVar("ResultT")


def in_halves(operation: Callable[..., list[ResultT]], *columns: Sequence[Any]) -> list[ResultT]:
    """The operation's results, one per row of the columns, each of which has a `usage`.

    A batch that does not fit into memory is run again in two halves, and these in halves if need be; `out_of_memory`
    in the usage of its first row counts it. What the failed attempt had computed is not in the ledger.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    try:
        return operation(*columns)
    except torch.OutOfMemoryError:
        if len(columns[0]) < 2:
            raise
    # Only here has the failed attempt let go of its tensors: a handled exception holds the frames it came through.
    return after_failure(operation, *columns)


def after_failure(operation: Callable[..., list[ResultT]], *columns: Sequence[Any]) -> list[ResultT]:
    """The results of a batch that did not fit into memory: in two halves, the failure counted in the first row."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = max(1, len(columns[0]) // 2)
    results = in_halves(operation, *(column[:half] for column in columns))
    if half < len(columns[0]):
        results += in_halves(operation, *(column[half:] for column in columns))
    return [_counted(results[0]), *results[1:]]


def _counted(result: Any) -> Any:
    return result if result is None else replace(result, usage=result.usage + Usage(out_of_memory=1))
