"""Between LlamaIndex's messages and the engine's: conversations one way, responses the other (ResponseWriter)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from nabla_agents import ChatAnswer, Message, PromptError, Reply, Result, Step

_ROLES: Final = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def conversation(messages: Sequence[ChatMessage]) -> list[Message]:
    """The engine's messages, from roles and blocks alone. Thoughts of earlier turns are left out.

    Raises:
        PromptError: a block that is neither text, thought nor tool call.
    """
    return [_message(message) for message in messages]


def _message(message: ChatMessage) -> Message:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            function = {"name": block.tool_name, "arguments": _arguments(block.tool_kwargs)}
            calls.append({"id": block.tool_call_id, "type": "function", "function": function})
        elif not isinstance(block, ThinkingBlock):
            raise PromptError(
                f"A {message.role.value} message has a {type(block).__name__}; this model reads text only."
            )
    return Message(_ROLES[message.role], "\n".join(texts), {"tool_calls": calls} if calls else {})


def _arguments(kwargs: dict[str, Any] | str) -> Any:
    """A call's arguments as an object where they are one; else the text that the model wrote."""
    if not isinstance(kwargs, str):
        return kwargs
    try:
        return json.loads(kwargs)
    except ValueError:
        return {"unreadable": kwargs}


class ResponseWriter:
    """Writes an answer as responses of one kind: whole, or cumulative ones with what each adds."""

    def __init__(self, answer: ChatAnswer, *, chat: bool, logprobs: bool) -> None:
        self._answer, self._chat, self._logprobs = answer, chat, logprobs

    def grown(self, step: Step) -> Any:
        """The response so far where a step adds something to it, else None."""
        return self._added(self._answer.added_by(step))

    def rest(self, result: Result) -> Any:
        """As `grown`, of what was held back until the answer was complete."""
        return self._added(self._answer.rest(result))

    def whole(self, result: Result, policy: dict[str, Any], **facts: Any) -> Any:
        """The whole response; its `raw` has usage of prompt and returned completion, why it ended, and the search in a
        few numbers, as native JSON types.
        """
        facts["raw"] = {
            "usage": result.token_usage,
            "finish_reason": self._answer.finish_reason(result),
            "nabla": {**result.summary(), **policy},
        }
        if self._logprobs:
            entries = self._answer.log_probs(result)
            facts["logprobs"] = [[LogProb(**{name: e[name] for name in LogProb.model_fields})] for e in entries]
        reply = self._answer.read(result.text)
        if reply.reasoning:
            facts["additional_kwargs"] = {"thinking": reply.reasoning}
        return self._response(reply, **facts)

    def _added(self, added: Reply) -> Any:
        if not added:
            return None
        extra = {"thinking_delta": added.reasoning} if added.reasoning else {}
        return self._response(self._answer.reply, delta=added.content, additional_kwargs=extra)

    def _response(self, reply: Reply, **facts: Any) -> Any:
        if not self._chat:
            return CompletionResponse(text=reply.content, **facts)
        blocks: list[ContentBlock] = [ThinkingBlock(content=reply.reasoning)] if reply.reasoning else []
        blocks += [TextBlock(text=reply.content)] if reply.content or not reply.tool_calls else []
        for index, call in enumerate(reply.tool_calls):
            kwargs = dict(call.arguments) if call.error is None else call.raw
            call_id = self._answer.call_id(index)
            blocks.append(ToolCallBlock(tool_call_id=call_id, tool_name=call.name, tool_kwargs=kwargs))
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), **facts)
