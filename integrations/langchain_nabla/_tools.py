"""From LangChain's and OpenAI's ways to ask for tools and structure to the engine's grammars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents import ConfigurationError, Grammar, Message

ToolChoice = str | bool | Mapping[str, Any] | None
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Constraints:
    """What a request's answer may be: the tools it offers, the grammar it keeps to, and the schema it is told of."""

    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None
    schema: Mapping[str, Any] | None = None


def constraints(
    tools: Sequence[dict[str, Any]] | None,
    tool_choice: ToolChoice,
    parallel: bool | None,
    response_format: Mapping[str, Any] | None,
    *,
    reasoning: bool,
) -> Constraints:
    """What these options ask for.

    With tools and a response format, the model either calls tools or answers in the format.

    Raises:
        ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
        GrammarError: a tool without a name, or a schema that is no object.
    """
    chosen = chosen_tool(tool_choice, tools or [])
    if chosen == "none":
        tools = None
    schema = _schema(response_format)
    if tools:
        offered = tools if chosen in ("auto", "any") else [tool for tool in tools if _name(tool) == chosen]
        grammar = Grammar.tools(
            offered,
            required=chosen != "auto",
            parallel=chosen in ("auto", "any") if parallel is None else parallel,
            lenient=True,
            reasoning=reasoning or (chosen == "auto" and schema is None),
            instead=None if schema is None else Grammar.json(schema, lenient=True),
        )
        return Constraints(list(tools), grammar, schema)
    grammar = None if schema is None else Grammar.json(schema, lenient=True, reasoning=reasoning)
    return Constraints(None, grammar, schema)


def chosen_tool(choice: ToolChoice, tools: Sequence[Mapping[str, Any]]) -> str:
    """`auto`, `none`, `any`, or the name of a tool.

    Raises:
        ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
    """
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        inner = choice.get("function", choice)
        choice = inner.get("name") if isinstance(inner, Mapping) and inner.get("name") else kind
    choice = {None: "auto", True: "any", False: "none", "required": "any"}.get(choice, choice)  # type: ignore[arg-type]
    names = [_name(tool) for tool in tools]
    if choice in ("auto", "none") or (choice == "any" and tools) or choice in names:
        return str(choice)
    raise ConfigurationError(
        f"tool_choice is {choice!r}; expected auto, none, any, required, a bool, or one of the tools: {names}."
    )


def told(messages: list[Message], schema: Mapping[str, Any] | None) -> list[Message]:
    """The conversation with the schema that the answer has to fit, in its system turn."""
    if schema is None or schema == _ANY_OBJECT:
        return messages
    text = f"Answer with a JSON value that fits this schema:\n{json.dumps(schema, ensure_ascii=False)}"
    if messages and messages[0].role == "system":
        first = messages[0]
        return [Message("system", f"{first.content}\n\n{text}", first.extra), *messages[1:]]
    return [Message("system", text), *messages]


def _name(tool: Mapping[str, Any]) -> Any:
    inner = tool.get("function", tool)
    return inner.get("name")


def _schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema of an OpenAI-shaped response format."""
    if response_format is None or response_format.get("type") == "text":
        return None
    kind = response_format.get("type")
    if kind == "json_object":
        return response_format.get("schema") or _ANY_OBJECT
    inner = response_format.get("json_schema")
    if kind == "json_schema" and isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
        return inner["schema"]
    raise ConfigurationError(
        f"response_format is {dict(response_format)!r}; expected type text, json_object or json_schema with its schema."
    )
