"""Between LangChain's messages and the engine's: roles and text one way, replies the other."""

from __future__ import annotations

import json
import uuid
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

from nabla_agents import Message, PromptError, Reply, ToolCall

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


class Replies:
    """A growing reply of one request, as message chunks that add up to the whole message."""

    def __init__(self, prompt_text: str, seed: int, *, tools: bool) -> None:
        self._source = f"{prompt_text}\n{seed}"
        self._tools, self._thinking = tools, Reply.opens_thinking(prompt_text)
        self._sent = Reply("")

    def read(self, text: str) -> Reply:
        """The whole text, read."""
        return Reply.read(text, tools=self._tools, thinking=self._thinking)

    def grown(self, text: str) -> AIMessageChunk | None:
        """What a longer text adds to what was sent; None if that is nothing yet."""
        return self._added(Reply.read(text, tools=self._tools, thinking=self._thinking, partial=True))

    def ended(self, text: str) -> AIMessageChunk:
        """What the whole text adds; may be empty."""
        return self._added(self.read(text)) or AIMessageChunk("")

    def _added(self, reply: Reply) -> AIMessageChunk | None:
        sent, self._sent = self._sent, reply
        content = reply.content[len(sent.content) :]
        reasoning = reply.reasoning[len(sent.reasoning) :]
        first = len(sent.tool_calls)
        calls = [self._chunk(call, first + i) for i, call in enumerate(reply.tool_calls[first:])]
        if not (content or reasoning or calls):
            return None
        extra = {"reasoning_content": reasoning} if reasoning else {}
        return AIMessageChunk(content, tool_call_chunks=calls, additional_kwargs=extra)

    def _chunk(self, call: ToolCall, index: int) -> ToolCallChunk:
        """A call in one piece. Its id is the same on every path, and another one in another turn."""
        args = json.dumps(dict(call.arguments), ensure_ascii=False) if call.error is None else call.raw
        call_id = f"call_{uuid.uuid5(uuid.NAMESPACE_OID, self._source + str(index)).hex}"
        return tool_call_chunk(name=call.name or None, args=args, id=call_id, index=index)

    def message(self, text: str) -> AIMessage:
        """The whole text as a message."""
        reply = self.read(text)
        calls, invalid = [], []
        for index, call in enumerate(reply.tool_calls):
            chunk = self._chunk(call, index)
            if call.error is None:
                calls.append({"name": call.name, "args": dict(call.arguments), "id": chunk["id"], "type": "tool_call"})
            else:
                what = {"name": chunk["name"], "args": chunk["args"], "id": chunk["id"], "error": call.error}
                invalid.append({**what, "type": "invalid_tool_call"})
        extra = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
        return AIMessage(reply.content, tool_calls=calls, invalid_tool_calls=invalid, additional_kwargs=extra)
