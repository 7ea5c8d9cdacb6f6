"""From LlamaIndex's and OpenAI's ways to ask for tools and structure to the engine's grammars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents import ConfigurationError, Grammar, Message

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class Asked:
    """What a call asks for: tools on offer, the grammar of its answer, the schema the model is told of, a draft."""

    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None
    schema: Mapping[str, Any] | None = None
    draft: str | None = None


def asked(options: Mapping[str, Any], *, reasoning: bool) -> Asked:
    """What these options ask for. With tools and a format, the model either calls tools or answers in the format.

    Raises:
        ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
        GrammarError: a tool without a name, or a schema that is no object.
    """
    tools, draft = list(options.get("tools") or []), options.get("draft")
    chosen = _chosen(options.get("tool_choice"), tools)
    schema, told = _schema(options.get("response_format"))
    if not tools or chosen == "none":
        grammar = None if schema is None else Grammar.json(schema, lenient=True, reasoning=reasoning)
        return Asked(None, grammar, told, draft)
    several, parallel = chosen in ("auto", "any"), options.get("parallel_tool_calls")
    grammar = Grammar.tools(
        tools if several else [tool for tool in tools if _name(tool) == chosen],
        required=chosen != "auto",
        parallel=several if parallel is None else bool(parallel),
        lenient=True,
        reasoning=reasoning or (chosen == "auto" and schema is None),
        instead=None if schema is None else Grammar.json(schema, lenient=True),
    )
    return Asked(tools, grammar, told, draft)


def told(messages: list[Message], schema: Mapping[str, Any] | None) -> list[Message]:
    """The conversation with the schema that the answer has to fit, in its system turn."""
    if schema is None or schema == _ANY_OBJECT:
        return messages
    text = f"Answer with a JSON value that fits this schema:\n{json.dumps(schema, ensure_ascii=False)}"
    if messages and messages[0].role == "system":
        first = messages[0]
        return [Message("system", f"{first.content}\n\n{text}", first.extra), *messages[1:]]
    return [Message("system", text), *messages]


def _chosen(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """`auto`, `none`, `any`, or the name of a tool."""
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        choice = (inner.get("name") if isinstance(inner, Mapping) else None) or choice.get("type")
    choice = {None: "auto", True: "any", False: "none", "required": "any"}.get(choice, choice)
    names = [_name(tool) for tool in tools]
    if choice in ("auto", "none") or (choice == "any" and tools) or choice in names:
        return str(choice)
    raise ConfigurationError(
        f"tool_choice is {choice!r}; expected auto, none, any, required, a bool, or one of the tools: {names}."
    )


def _name(tool: Mapping[str, Any]) -> Any:
    return tool.get("function", tool).get("name")


def _schema(response_format: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The JSON schema of a response format in OpenAI's form, and the one that the model is told of."""
    if response_format is None:
        return None, None
    if isinstance(response_format, Mapping):
        kind, inner = response_format.get("type"), response_format.get("json_schema")
        if kind == "text":
            return None, None
        if kind == "json_object":
            return response_format.get("schema") or _ANY_OBJECT, None
        if kind == "json_schema" and isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            return inner["schema"], inner["schema"]
    raise ConfigurationError(
        f"response_format is {response_format!r}; expected type text, json_object or json_schema with its schema."
    )
