"""Conversations for chat templates that know fewer roles, or no tools."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from nabla_agents.chat.dialects import HERMES, Dialect
from nabla_agents.chat.tool_calls import ToolCall
from nabla_agents.errors import PromptError
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


def in_dialect(messages: Sequence[Message], dialect: Dialect) -> list[Message]:
    """The conversation as the family's template takes it: calls named at its length, one a turn where it has it so."""
    turns = [_named(message, dialect.call_id) for message in messages] if dialect.call_id else list(messages)
    return _one_call_a_turn(turns) if dialect.several == "never" else turns


def _named(message: Message, length: int) -> Message:
    """With the names of calls hashed to a length, but for those that have it."""

    def name(call_id: Any) -> Any:
        fits = not isinstance(call_id, str) or (len(call_id) == length and call_id.isalnum())
        return call_id if fits else hashlib.sha256(call_id.encode()).hexdigest()[:length]

    extra = dict(message.extra)
    if "tool_call_id" in extra:
        extra["tool_call_id"] = name(extra["tool_call_id"])
    if isinstance(calls := extra.get("tool_calls"), list):
        extra["tool_calls"] = [{**c, "id": name(c["id"])} if isinstance(c, dict) and "id" in c else c for c in calls]
    return Message(message.role, message.content, extra)


def _one_call_a_turn(messages: Sequence[Message]) -> list[Message]:
    """Each call of a turn in a turn of its own, with its result behind it."""
    turns: list[Message] = []
    waiting: list[Message] = []  # turns of the further calls of the last one that has several
    for message in messages:
        calls = message.extra.get("tool_calls") or []
        if len(calls) > 1:
            first, *waiting = [
                Message(message.role, message.content if i == 0 else "", {**message.extra, "tool_calls": [call]})
                for i, call in enumerate(calls)
            ]
            turns.append(first)
            continue
        turns.append(message)
        if message.role == "tool" and waiting:
            turns.append(waiting.pop(0))
    return [*turns, *waiting]


def _spelled_out(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    calls = message.extra.get("tool_calls")
    if not calls:
        return message
    extra = {name: value for name, value in message.extra.items() if name != "tool_calls"}
    written = [_written(call) for call in calls]
    return Message(message.role, "\n".join([message.content, *written] if message.content else written), extra)


def _written(call: Any) -> str:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise PromptError(f"A tool call of the conversation is {call!r}; expected a name and arguments.")
    inner = cast(Mapping[str, Any], inner)
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        return f'{HERMES.begin}\n{{"name": {json.dumps(inner["name"])}, "arguments": {arguments}}}\n{HERMES.end}'
    return ToolCall(inner["name"], arguments, "").text
