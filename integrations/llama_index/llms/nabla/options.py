"""Options of one call, from three places: a call's own go before those of the scope, these before the instance's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "stop")
PER_CALL: Final = (
    *(*SAMPLING, "seed", "rollouts", "budget", "strategy", "logprobs"),
    *("refine_policy", "trace_budget", "final", "refine_constrained"),
)
REQUEST: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft")

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


def merged(call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A call's settings on top of the scope's, and what it asks for besides: tools, a format, a draft.

    `nabla={...}` holds options too, for callers that pass on only what they do not know; `max_new_tokens` and
    `json_schema` are other names of `max_tokens` and `response_format`.

    Raises:
        TypeError: an unknown option.
    """
    call = dict(call)
    call = {**call.pop("nabla", {}), **call}
    if "max_new_tokens" in call:
        call["max_tokens"] = call.pop("max_new_tokens")
    if (schema := call.pop("json_schema", None)) is not None:
        call["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    asked = {name: call.pop(name) for name in REQUEST if name in call}
    check_known(call)
    return {**_scope.get(), **call}, asked


def check_known(options: Mapping[str, Any]) -> None:
    if unknown := [name for name in options if name not in PER_CALL]:
        raise TypeError(
            f"NablaLLM got unknown options: {', '.join(unknown)}. Known: {', '.join(PER_CALL)}; other settings go to "
            "the constructor."
        )
