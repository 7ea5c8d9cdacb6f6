"""Options of one call, from three places: a call's own go before those of the scope, these before the instance's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
PER_CALL: Final = (*SAMPLING, "seed", "rollouts", "budget", "strategy")

_scope: ContextVar[Mapping[str, Any]] = ContextVar("nabla_options", default={})  # noqa: B039 (never mutated)


@contextmanager
def nabla_options(**options: Any) -> Iterator[None]:
    """Options for every call that begins within, whoever makes it: a query engine, an agent, a workflow step.

    An inner scope adds to the outer one. Tasks and threads of LlamaIndex that start within take the scope along.

    Raises:
        TypeError: an unknown option.
    """
    check_known(options)
    token = _scope.set({**_scope.get(), **options})
    try:
        yield
    finally:
        _scope.reset(token)


def merged(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's options on top of the scope's. `tools` and `tool_choice` are taken where they ask for nothing.

    Raises:
        TypeError: an unknown option.
        NotImplementedError: tools, which this model does not call.
    """
    call = dict(call)
    if call.pop("tools", None) or call.pop("tool_choice", None):
        raise NotImplementedError(NO_TOOLS)
    call.pop("tool_choice", None)
    check_known(call)
    return {**_scope.get(), **call}


def check_known(options: Mapping[str, Any]) -> None:
    if unknown := [name for name in options if name not in PER_CALL]:
        raise TypeError(
            f"NablaLLM got unknown options: {', '.join(unknown)}. Known: {', '.join(PER_CALL)}; other settings go to "
            "the constructor."
        )


NO_TOOLS: Final = (
    "NablaLLM does not call tools by itself (metadata.is_function_calling_model is False). Use ReActAgent, which asks "
    "for tools in plain text, or another model for the tool calls."
)
