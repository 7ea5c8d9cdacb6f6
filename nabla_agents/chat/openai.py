"""ChatOptions: what a request in OpenAI's form asks of an answer, tools and structure, as the engine's grammars."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from nabla_agents.chat.dialects import HERMES, Dialect
from nabla_agents.chat.grammar import Grammar
from nabla_agents.chat.tool_calls import function
from nabla_agents.errors import ConfigurationError
from nabla_agents.types import Message

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True)
class ChatOptions:
    """The tools a request offers, the grammar that its answer keeps to, and the schema that the model is told of."""

    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None
    schema: Mapping[str, Any] | None = None

    @staticmethod
    def read(
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        reasoning: bool = False,
        dialect: Dialect = HERMES,
    ) -> ChatOptions:
        """What these options of OpenAI's API ask for. With tools and a response format, the model either calls tools or
        answers in the format. `reasoning` lets it think first; `dialect`
        is how the model writes calls and thoughts.

        Raises:
            ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
            GrammarError: a tool without a name, or a schema that is no object.
        """
        tools = list(tools or [])
        chosen = chosen_tool(tool_choice, tools)
        schema, named = _schema(response_format)
        if not tools or chosen == "none":
            grammar = (
                None if schema is None else Grammar.json(schema, lenient=True, reasoning=reasoning, dialect=dialect)
            )
            return ChatOptions(None, grammar, named)
        several = chosen in ("auto", "any")
        grammar = Grammar.tools(
            tools if several else [tool for tool in tools if function(tool).get("name") == chosen],
            required=chosen != "auto",
            parallel=several if parallel_tool_calls is None else bool(parallel_tool_calls),
            lenient=True,
            reasoning=reasoning or (chosen == "auto" and schema is None),
            instead=None if schema is None else Grammar.json(schema, lenient=True),
            dialect=dialect,
        )
        return ChatOptions(tools, grammar, named)

    def with_schema(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the schema that the answer has to fit, in its system turn."""
        if self.schema is None or self.schema == _ANY_OBJECT:
            return list(messages)
        text = f"Answer with a JSON value that fits this schema:\n{json.dumps(self.schema, ensure_ascii=False)}"
        if messages and messages[0].role == "system":
            first = messages[0]
            return [Message("system", f"{first.content}\n\n{text}", first.extra), *messages[1:]]
        return [Message("system", text), *messages]


def chosen_tool(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """`auto`, `none`, `any`, or the name of a tool.

    Raises:
        ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
    """
    original = choice
    if isinstance(choice, Mapping):
        mapping = cast(Mapping[str, Any], choice)
        inner = mapping.get("function", mapping)
        choice = (inner.get("name") if isinstance(inner, Mapping) else None) or mapping.get("type")
    aliases = {None: "auto", True: "any", False: "none", "required": "any"}
    choice = aliases.get(choice, choice) if isinstance(choice, str | bool | None) else choice
    names = [function(tool).get("name") for tool in tools]
    if choice in ("auto", "none") or (choice == "any" and tools) or choice in names:
        return str(choice)
    if not names:
        raise ConfigurationError(
            f"tool_choice is {original!r}, but there are no tools; expected tools, 'auto' or 'none'."
        )
    raise ConfigurationError(
        f"tool_choice is {original!r}; expected 'auto', 'none', 'required' or the name of a tool: {names}."
    )


def _schema(response_format: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The JSON schema of a response format, and the one that the model is told of."""
    if response_format is None:
        return None, None
    if isinstance(response_format, Mapping):
        form = cast(Mapping[str, Any], response_format)
        kind, inner = form.get("type"), form.get("json_schema")
        if kind == "text":
            return None, None
        if kind == "json_object":
            return form.get("schema") or _ANY_OBJECT, None
        if kind == "json_schema" and isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            return inner["schema"], inner["schema"]
    raise ConfigurationError(
        f"response_format is {response_format!r}; expected type text, json_object or json_schema with its schema."
    )
