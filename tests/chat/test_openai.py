"""What a request asks of its answer, in OpenAI's words."""

from typing import Any

import pytest

from nabla_agents import ChatOptions, ConfigurationError, Grammar, Message

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("a", "b")]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("choice", "required", "names"),
    [
        (None, False, "ab"),
        ("auto", False, "ab"),
        ("any", True, "ab"),
        ("required", True, "ab"),
        (True, True, "ab"),
        ("b", True, "b"),
        ({"type": "function", "function": {"name": "a"}}, True, "a"),
        ({"type": "tool", "name": "a"}, True, "a"),
        ({"type": "any"}, True, "ab"),
        (False, None, ""),
        ("none", None, ""),
    ],
)
def test_a_choice_of_tools_becomes_a_grammar(choice: Any, required: bool | None, names: str) -> None:
    chat = ChatOptions.read(tools=TOOLS, tool_choice=choice)
    if chat.grammar is None:
        assert (required, chat.tools) == (None, None)
        return
    assert chat.tools == TOOLS, "the prompt offers all of them, so that it stays the same"
    assert chat.grammar.required is required
    assert chat.grammar.body == Grammar.tools(TOOLS["ab".index(names[0]) :][: len(names)], lenient=True).body
    assert chat.grammar.parallel is (len(names) == 2)


def test_a_format_becomes_a_grammar_and_the_model_is_told_of_its_schema() -> None:
    named = ChatOptions.read(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}})
    unnamed = ChatOptions.read(response_format={"type": "json_object", "schema": SCHEMA})
    assert named.grammar is not None
    assert named.grammar == unnamed.grammar
    messages = [Message("system", "Be brief."), Message("user", "x?")]
    assert unnamed.with_schema(messages) == messages
    first, second = named.with_schema(messages)
    assert first.content.startswith("Be brief.\n\nAnswer with a JSON value")
    assert second == messages[1]
    assert [m.role for m in named.with_schema(messages[1:])] == ["system", "user"]
    assert ChatOptions.read(response_format={"type": "text"}) == ChatOptions()
    both = ChatOptions.read(tools=TOOLS, response_format={"type": "json_object"})
    assert both.grammar is not None
    assert both.grammar.instead is not None


@pytest.mark.parametrize(
    "options",
    [
        {"tool_choice": "any"},
        {"tools": TOOLS, "tool_choice": "c"},
        {"tools": TOOLS, "tool_choice": 3},
        {"response_format": {"type": "yaml"}},
        {"response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
    ],
)
def test_what_cannot_be_asked_is_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        ChatOptions.read(**options)
