"""Asked: what a request asks of its answer, in OpenAI's words: tools, a choice among them, a response format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from nabla_agents.errors import ConfigurationError
from nabla_agents.grammar import Grammar
from nabla_agents.tool_calls import function
from nabla_agents.types import Message

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True)
class Asked:
    """The tools that the prompt offers, the grammar that the answer keeps to, and the schema that the model is told of.

    `tools` go into `Engine.prompt(messages, tools=...)`, `grammar` into `Sampling(grammar=...)`; `told` puts the schema
    into the messages.
    """

    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None
    schema: Mapping[str, Any] | None = None

    @staticmethod
    def read(
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
        response_format: Any = None,
        reasoning: bool = False,
    ) -> Asked:
        """What these options ask for. With tools and a format, the model either calls tools or answers in the format.

        Args:
            tools: functions in OpenAI's form.
            tool_choice: auto, none, any, required, a tool's name, OpenAI's mapping or a bool; it is enforced.
            parallel_tool_calls: whether one answer may have several calls; None where no tool is chosen by name.
            response_format: of type text, json_object (may have a schema that the model is not told of) or json_schema.
            reasoning: whether the model may think before it answers.

        Raises:
            ConfigurationError: a choice among no tools, of an unknown tool, or in a form that is none of the known.
            GrammarError: a tool without a name, or a schema that is no object.
        """
        tools = list(tools or [])
        chosen = _chosen(tool_choice, tools)
        schema, told = _schemas(response_format)
        if not tools or chosen == "none":
            grammar = None if schema is None else Grammar.json(schema, lenient=True, reasoning=reasoning)
            return Asked(None, grammar, told)
        several = chosen in ("auto", "any")
        grammar = Grammar.tools(
            tools if several else [tool for tool in tools if _name(tool) == chosen],
            required=chosen != "auto",
            parallel=several if parallel_tool_calls is None else bool(parallel_tool_calls),
            lenient=True,
            reasoning=reasoning or (chosen == "auto" and schema is None),
            instead=None if schema is None else Grammar.json(schema, lenient=True),
        )
        return Asked(tools, grammar, told)

    def told(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the schema that the answer has to fit, in its system turn."""
        if self.schema is None or self.schema == _ANY_OBJECT:
            return list(messages)
        text = f"Answer with a JSON value that fits this schema:\n{json.dumps(self.schema, ensure_ascii=False)}"
        if messages and messages[0].role == "system":
            first = messages[0]
            return [Message("system", f"{first.content}\n\n{text}", first.extra), *messages[1:]]
        return [Message("system", text), *messages]


def _chosen(choice: Any, tools: Sequence[Mapping[str, Any]]) -> str:
    """`auto`, `none`, `any`, or the name of a tool."""
    given = choice
    if isinstance(choice, Mapping):
        choice = function(cast(Mapping[str, Any], choice)).get("name") or choice.get("type")
    if choice is None or isinstance(choice, bool):
        choice = {None: "auto", True: "any", False: "none"}[choice]
    choice = "any" if choice == "required" else choice
    names = [_name(tool) for tool in tools]
    if choice in ("auto", "none") or (choice == "any" and tools) or choice in names:
        return str(choice)
    raise ConfigurationError(
        f"tool_choice is {given!r}; expected auto, none, any, required, a bool, or one of the tools: {names}."
    )


def _name(tool: Mapping[str, Any]) -> Any:
    return function(tool).get("name")


def _schemas(response_format: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The JSON schema of a response format, and the one that the model is told of."""
    if response_format is None:
        return None, None
    if isinstance(response_format, Mapping):
        asked = cast(Mapping[str, Any], response_format)
        kind, inner = asked.get("type"), asked.get("json_schema")
        if kind == "text":
            return None, None
        if kind == "json_object":
            return asked.get("schema") or _ANY_OBJECT, None
        if kind == "json_schema" and isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            return inner["schema"], inner["schema"]
    raise ConfigurationError(
        f"response_format is {response_format!r}; expected type text, json_object or json_schema with its schema."
    )
