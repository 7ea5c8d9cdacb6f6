"""Who watches the searches of this context, besides instrumentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from nabla_agents import Step

_watcher: ContextVar[Callable[[Step], None] | None] = ContextVar("nabla_watcher", default=None)


@contextmanager
def watching(report: Callable[[Step], None]) -> Iterator[None]:
    """Each step of the calls that begin within is reported, on the thread that computes it."""
    token = _watcher.set(report)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell(step: Step) -> None:
    """Reports a step to the watcher, if there is one."""
    if (report := _watcher.get()) is not None:
        report(step)
