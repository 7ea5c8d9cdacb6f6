"""What calls were made within a scope: their prompts and results, the last of which may be refined afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from nabla_agents import Prompt, Result


@dataclass(frozen=True)
class Recorded:
    """One call that has ended."""

    llm: Any
    prompt: Prompt
    result: Result


_records: ContextVar[list[Recorded] | None] = ContextVar("nabla_records", default=None)


@contextmanager
def recording() -> Iterator[list[Recorded]]:
    """A list that gets every call that ends within, in that order."""
    records: list[Recorded] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def record(one: Recorded) -> None:
    """Adds a call to the list of the scope around, if there is one."""
    if (records := _records.get()) is not None:
        records.append(one)
