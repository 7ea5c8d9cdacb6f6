"""Progress of a search as custom events, for whoever watches the chain or graph that it runs in."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Final

from langchain_core.callbacks import dispatch_custom_event
from langchain_core.runnables.config import var_child_runnable_config

from nabla_agents import Result, Run, Step

EVENT: Final = "nabla_step"


def report(step: Step) -> None:
    """Sends one step to `astream_events` and callback handlers as a custom event, and to LangGraph's stream mode
    `custom`; nowhere outside of a run.
    """
    config = var_child_runnable_config.get()
    if config is None or step.kind == "token":
        return
    data = step.summary()
    with contextlib.suppress(RuntimeError):  # a config, but no run above this one
        dispatch_custom_event(EVENT, data, config=config)
    _write(data)


def followed(run: Run) -> Result:
    """The result of a run, each step of which is reported."""
    for step in run.rounds():
        report(step)
    return run.result


async def afollowed(run: Run) -> Result:
    """As `followed`; cancelled with the task that awaits it."""
    async for step in run.arounds():
        report(step)
    return run.result


def _write(data: dict[str, Any]) -> None:
    if "langgraph" not in sys.modules:  # nobody can be watching
        return
    from langgraph.config import get_stream_writer

    with contextlib.suppress(RuntimeError, KeyError):  # in a run, but not in a graph
        get_stream_writer()({EVENT: data})
