"""What holds for the calls of a scope, whoever makes them: their options, who watches them, and what they said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nabla_agents import EngineSettings, Prompt, Result, Step

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM

PER_CALL: Final = (
    *(*EngineSettings.SAMPLING, "seed", "rollouts", "budget", "strategy", "logprobs"),
    *("refine_policy", "trace_budget", "final", "refine_constrained"),
)
_REQUEST: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "draft_cut")

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Recorded:
    """One call that has ended."""

    llm: NablaLLM
    prompt: Prompt
    result: Result


_options: ContextVar[Mapping[str, Any]] = ContextVar("nabla_options", default={})  # noqa: B039 (never mutated)
_watcher: ContextVar[Callable[[Step], None] | None] = ContextVar("nabla_watcher", default=None)
_records: ContextVar[list[Recorded] | None] = ContextVar("nabla_records", default=None)


def nabla_options(**options: Any) -> AbstractContextManager[Mapping[str, Any]]:
    """Options for every call that begins within, whoever makes it: a query engine, an agent, a workflow step.

    An inner scope adds to the outer one. Tasks and threads of LlamaIndex that start within take the scope along.

    Raises:
        TypeError: an unknown option.
    """
    check_known(options)
    return _within(_options, lambda: {**_options.get(), **options})


def watching(report: Callable[[Step], None]) -> AbstractContextManager[Any]:
    """Each step of the calls that begin within is reported, besides to instrumentation."""
    return _within(_watcher, lambda: report)


def recording() -> AbstractContextManager[list[Recorded]]:
    """A list that gets every call that ends within, in that order; the last may be refined afterwards."""
    return _within(_records, list)


@contextmanager
def _within(variable: ContextVar[Any], make: Callable[[], ValueT]) -> Iterator[ValueT]:
    value = make()
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def tell(step: Step) -> None:
    """Reports a step to the watcher, if there is one."""
    if (report := _watcher.get()) is not None:
        report(step)


def record(llm: NablaLLM, prompt: Prompt, result: Result) -> None:
    """Adds a call to the list of the scope around, if there is one."""
    if (records := _records.get()) is not None:
        records.append(Recorded(llm, prompt, result))


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
    request = {name: call.pop(name) for name in _REQUEST if name in call}
    check_known(call)
    return {**_options.get(), **call}, request


def check_known(options: Mapping[str, Any]) -> None:
    """Raises TypeError for an option that no call has."""
    if unknown := [name for name in options if name not in PER_CALL]:
        meant = EngineSettings.did_you_mean(unknown[0], PER_CALL)
        raise TypeError(
            f"NablaLLM got unknown options: {', '.join(unknown)}{meant}. Known: {', '.join(PER_CALL)}; other settings "
            "go to the constructor."
        )
