"""Conversations for chat templates that know fewer roles, or no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nabla_agents.markers import CALL_BEGIN, CALL_END
from nabla_agents.tool_calls import ToolCall
from nabla_agents.types import Message

_TOOLS: Final = "# Tools\n\nYou may call one or more of these functions:\n<tools>\n{tools}\n</tools>\n\n"
_HOW: Final = (
    "For each call write a JSON object between <tool_call> and </tool_call>:\n"
    '<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>'
)


def folded(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system role or want alternating ones: system text opens the next turn, and
    neighbours of one role become one turn.
    """
    turns: list[Message] = []
    system: list[str] = []
    for message in messages:
        if message.role == "system":
            system.append(message.content)
            continue
        content = "\n\n".join([*system, message.content])
        system = []
        if turns and turns[-1].role == message.role and not (turns[-1].extra or message.extra):
            turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{content}")
        else:
            turns.append(Message(message.role, content, message.extra))
    return [*turns, Message("user", "\n\n".join(system))] if system else turns


def with_tools_in_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> list[Message]:
    """For templates without tools: what they are goes into the system turn, calls and their results into the text."""
    turns = [_spelled_out(message) for message in messages]
    if not tools:
        return turns
    manual = _TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)) + _HOW
    if turns and turns[0].role == "system":
        return [Message("system", f"{turns[0].content}\n\n{manual}", turns[0].extra), *turns[1:]]
    return [Message("system", manual), *turns]


def _spelled_out(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    calls = message.extra.get("tool_calls")
    if not calls:
        return message
    extra = {name: value for name, value in message.extra.items() if name != "tool_calls"}
    written = [_written(call) for call in calls]
    return Message(message.role, "\n".join([message.content, *written] if message.content else written), extra)


def _written(call: Mapping[str, Any]) -> str:
    inner = call.get("function", call)
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        return f'{CALL_BEGIN}\n{{"name": {json.dumps(inner["name"])}, "arguments": {arguments}}}\n{CALL_END}'
    return ToolCall(inner["name"], arguments, "").text
