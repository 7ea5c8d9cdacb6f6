"""Conversations for templates that know fewer roles, or no tools."""

from typing import Any

import pytest

from nabla_agents import Message, PromptError
from nabla_agents.chat.template import folded, with_tools_in_text
from nabla_agents.testing import random_model

TOOL = {"type": "function", "function": {"name": "add", "description": "adds é", "parameters": {"type": "object"}}}
CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": "é"}}}
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' or (loop.index0 and messages[loop.index0 - 1].role == m.role) %}"
    "{{ raise_exception('no such turn') }}{% endif %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
)


def test_system_text_opens_the_next_turn_and_neighbours_become_one() -> None:
    turns = [Message("system", "S"), Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
    assert folded(turns) == [Message("user", "S\n\na\n\nb"), Message("assistant", "c")]
    assert folded([Message("user", "a"), Message("system", "S")]) == [Message("user", "a"), Message("user", "S")]
    assert folded([Message("system", "only")]) == [Message("user", "only")]
    calls = [Message("assistant", "", {"tool_calls": [CALL]}), Message("assistant", "c")]
    assert folded(calls) == calls


def test_tools_and_calls_are_written_as_text() -> None:
    turns = [
        Message("user", "3 + é?"),
        Message("assistant", "I add.", {"tool_calls": [CALL]}),
        Message("tool", "7", {"tool_call_id": "1"}),
    ]
    system, user, assistant, tool = with_tools_in_text(turns, [TOOL])
    assert system.role == "system"
    assert '"description": "adds é"' in system.content
    assert user == turns[0]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": "é"}}\n</tool_call>'
    assert assistant == Message("assistant", f"I add.\n{call}")
    assert tool == Message("user", "<tool_response>\n7\n</tool_response>")
    in_json = {"function": {"name": "add", "arguments": '{"a": "é"}'}}
    assert with_tools_in_text([Message("assistant", "", {"tool_calls": [in_json]})], None)[0].content == call


def test_a_system_turn_is_kept_before_the_tools() -> None:
    [system, _] = with_tools_in_text([Message("system", "Be brief."), Message("user", "x")], [TOOL])
    assert system.content.startswith("Be brief.\n\n# Tools")


def test_a_model_whose_template_has_no_tools_reads_of_them_all_the_same() -> None:
    model = random_model()
    assert "tools" not in model.tokenizer.hf.chat_template
    turns = [Message("user", "x"), Message("assistant", "", {"tool_calls": [CALL]}), Message("tool", "7")]
    text = model.prompt(turns, tools=[TOOL]).text
    assert "adds é" in text
    assert '{"name": "add", "arguments": {"a": "é"}}' in text
    assert "<tool_response>\n7" in text


def test_a_template_that_refuses_roles_gets_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    monkeypatch.setattr(model.tokenizer.hf, "chat_template", STRICT)
    assert (
        model.prompt([Message("system", "S"), Message("user", "a"), Message("user", "b")]).text == "<user>S\n\na\n\nb"
    )
    monkeypatch.setattr(model.tokenizer.hf, "chat_template", "{{ raise_exception('never') }}")
    with pytest.raises(PromptError, match="never"):
        model.prompt([Message("system", "S"), Message("user", "a")])
