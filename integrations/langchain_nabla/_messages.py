"""Between LangChain's messages and the engine's: roles and text one way, replies the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from nabla_agents import CommittedReply, Message, PromptError, Reply, ToolCall

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_CALLS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call")  # these come in message.tool_calls too
_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}


def conversation(messages: Sequence[BaseMessage]) -> list[Message]:
    """The engine's messages. Thoughts of earlier turns are left out; a tool's error says that it is one.

    Raises:
        PromptError: a block that is not text.
    """
    return [_message(message) for message in messages]


def text_of(message: BaseMessage) -> str:
    """The text of a message's content, blocks joined by new lines.

    Raises:
        PromptError: a block that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    texts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in ("text", "text-plain") or "text" in block:
            texts.append(str(block.get("text", "")))
        elif block.get("type") not in (*_THOUGHTS, *_CALLS):
            raise PromptError(
                f"A {message.type} message has a block of type {block.get('type')!r}; this model reads text only."
            )
    return "\n".join(texts)


def _message(message: BaseMessage) -> Message:
    content = text_of(message)
    extra: dict[str, Any] = {} if message.name is None else {"name": message.name}
    if isinstance(message, AIMessage):
        calls = [_call(c["name"], c["args"], c["id"]) for c in message.tool_calls]
        return Message("assistant", content, {**extra, "tool_calls": calls} if calls else extra)
    if isinstance(message, ToolMessage):
        failed = message.status == "error" and not content.lstrip().lower().startswith("error")
        content = f"Error: {content}" if failed else content
        return Message("tool", content, {**extra, "tool_call_id": message.tool_call_id})
    if isinstance(message, FunctionMessage):
        return Message("tool", content, extra)
    if isinstance(message, ChatMessage):
        return Message(_ROLES.get(message.role, message.role), content, extra)
    if isinstance(message, SystemMessage):
        return Message("system", content, extra)
    if isinstance(message, HumanMessage):
        return Message("user", content, extra)
    raise PromptError(f"A message is of type {message.type!r}; expected human, ai, system or tool.")


def _call(name: str, arguments: Any, call_id: str | None) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chunk(added: Reply, replies: CommittedReply, offset: int = 0) -> AIMessageChunk:
    """What a growing reply got, as a chunk that adds up with those before it to the whole message; calls are counted
    from `offset` on.
    """
    first = len(replies.reply.tool_calls) - len(added.tool_calls)
    calls = [_call_chunk(call, first + i, replies, offset) for i, call in enumerate(added.tool_calls)]
    extra = {"reasoning_content": added.reasoning} if added.reasoning else {}
    return AIMessageChunk(content=added.content, tool_call_chunks=calls, additional_kwargs=extra)


def message(reply: Reply, replies: CommittedReply) -> AIMessage:
    """A whole reply as a message; `replies` names its calls."""
    calls, invalid = [], []
    for index, call in enumerate(reply.tool_calls):
        written = _call_chunk(call, index, replies)
        if call.error is None:
            calls.append({"name": call.name, "args": dict(call.arguments), "id": written["id"], "type": "tool_call"})
        else:
            what = {"name": written["name"], "args": written["args"], "id": written["id"], "error": call.error}
            invalid.append({**what, "type": "invalid_tool_call"})
    extra = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    return AIMessage(reply.content, tool_calls=calls, invalid_tool_calls=invalid, additional_kwargs=extra)


def _call_chunk(call: ToolCall, index: int, replies: CommittedReply, offset: int = 0) -> ToolCallChunk:
    """A call in one piece."""
    args = json.dumps(dict(call.arguments), ensure_ascii=False) if call.error is None else call.raw
    return tool_call_chunk(name=call.name or None, args=args, id=replies.call_id(index), index=offset + index)
