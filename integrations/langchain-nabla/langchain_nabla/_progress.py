"""Progress of a search as custom events, for whoever watches the chain or graph that it runs in."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from langchain_core.callbacks import dispatch_custom_event
from langchain_core.runnables.config import var_child_runnable_config

from nabla_agents import Step

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
    if "langgraph" in sys.modules:  # else nobody can be watching
        from langgraph.config import get_stream_writer

        with contextlib.suppress(RuntimeError, KeyError):  # in a run, but not in a graph
            get_stream_writer()({EVENT: data})
