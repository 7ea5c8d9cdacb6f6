"""Between LangChain's messages and the engine's: conversations one way, answers the other (MessageWriter)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

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
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_nabla._call import summed
from nabla_agents import ChatAnswer, Message, PromptError, Reply, Result, Step

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla

PROVIDER: Final = "nabla"
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
_CALLS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call")  # these come in message.tool_calls too
_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "function": "tool"}
_AFTER_TEXT: Final = 2
"""Where calls begin among the blocks of output version v1: reasoning and text are 0 and 1, and core merges by index."""


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


def was_cut(message: BaseMessage) -> bool:
    """Whether a limit ended a message, by the words of the common providers."""
    said = (message.response_metadata.get(name) for name in ("finish_reason", "stop_reason", "done_reason"))
    return any(isinstance(reason, str) and reason.lower() in ("length", "max_tokens") for reason in said)


def as_draft(message: BaseMessage) -> dict[str, Any]:
    """A message as the options of a call that refines it."""
    return {"draft": text_of(message), "draft_cut": was_cut(message)}


def _message(message: BaseMessage) -> Message:
    content = text_of(message)
    extra: dict[str, Any] = {} if message.name is None else {"name": message.name}
    if isinstance(message, AIMessage):
        functions = [(call["id"], {"name": call["name"], "arguments": call["args"]}) for call in message.tool_calls]
        calls = [{"id": call_id, "type": "function", "function": function} for call_id, function in functions]
        return Message("assistant", content, {**extra, "tool_calls": calls} if calls else extra)
    if isinstance(message, ToolMessage):
        failed = message.status == "error" and not content.lstrip().lower().startswith("error")
        content = f"Error: {content}" if failed else content
        return Message("tool", content, {**extra, "tool_call_id": message.tool_call_id})
    if isinstance(message, ChatMessage):
        return Message(_ROLES.get(message.role, message.role), content, extra)
    for kind, role in ((SystemMessage, "system"), (HumanMessage, "user"), (FunctionMessage, "tool")):
        if isinstance(message, kind):
            return Message(role, content, extra)
    raise PromptError(f"A message is of type {message.type!r}; expected human, ai, system or tool.")


class MessageWriter:
    """Writes the answer of a chat model's call as a message, whole or in chunks that add up to it."""

    def __init__(self, llm: ChatNabla, answer: ChatAnswer) -> None:
        self._llm, self._answer = llm, answer

    def grown(self, step: Step) -> Iterator[ChatGenerationChunk]:
        """What a step commits to the message, if anything."""
        return self._added(self._answer.added_by(step))

    def end(self, result: Result) -> Iterator[ChatGenerationChunk]:
        """What is left of the message, and by itself the one chunk that has usage and metadata."""
        yield from self._added(self._answer.rest(result))
        last = AIMessageChunk(content="", usage_metadata=self._usage(result), response_metadata=self._metadata(result))
        last.chunk_position = "last"
        yield ChatGenerationChunk(message=last)

    def chat_result(self, results: Sequence[Result]) -> ChatResult:
        """The messages of all answers, in this order."""
        return ChatResult(generations=[self._whole(r) for r in results], llm_output=summed(results, self._llm.model))

    def _whole(self, result: Result) -> ChatGeneration:
        calls, invalid = [], []
        reply = self._answer.read(result.text)
        for index, call in enumerate(reply.tool_calls):
            call_id = self._answer.call_id(index)
            if call.error is None:
                calls.append({"name": call.name, "args": dict(call.arguments), "id": call_id, "type": "tool_call"})
            else:
                written = {"name": call.name or None, "args": call.raw, "id": call_id, "error": call.error}
                invalid.append({**written, "type": "invalid_tool_call"})
        message = AIMessage(
            reply.content,
            tool_calls=calls,
            invalid_tool_calls=invalid,
            additional_kwargs=_thoughts(reply),
            usage_metadata=self._usage(result),
            response_metadata=self._metadata(result),
        )
        info = {"finish_reason": message.response_metadata["finish_reason"]}
        return ChatGeneration(message=message, generation_info=info)

    def _added(self, added: Reply) -> Iterator[ChatGenerationChunk]:
        if added:
            first = len(self._answer.reply.tool_calls) - len(added.tool_calls)
            offset = first + (_AFTER_TEXT if self._llm.output_version == "v1" else 0)
            calls = [
                tool_call_chunk(
                    name=call.name or None,
                    # Chunks are read as far as they can be: what is no call must not look like the beginning of one.
                    args=call.arguments_text if call.error is None else json.dumps(call.raw, ensure_ascii=False),
                    id=self._answer.call_id(first + i),
                    index=offset + i,
                )
                for i, call in enumerate(added.tool_calls)
            ]
            message = AIMessageChunk(content=added.content, tool_call_chunks=calls, additional_kwargs=_thoughts(added))
            yield ChatGenerationChunk(message=message)

    def _usage(self, result: Result) -> UsageMetadata:
        """Tokens of the prompt and of the returned answer; what the search discarded is in the metadata's ledger."""
        prompt, completion, total = result.token_usage.values()
        usage = UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=total)
        if reasoning := self._answer.reasoning_tokens(result):
            usage["output_token_details"] = {"reasoning": reasoning}
        return usage

    def _metadata(self, result: Result) -> dict[str, Any]:
        """Native JSON types only."""
        metadata = {
            "model_name": self._llm.model,
            "model_provider": PROVIDER,
            "finish_reason": self._answer.finish_reason(result),
            "nabla": result.summary(),
        }
        return {**metadata, "logprobs": {"content": self._answer.log_probs(result)}} if self._llm.logprobs else metadata


def _thoughts(reply: Reply) -> dict[str, Any]:
    return {"reasoning_content": reply.reasoning} if reply.reasoning else {}
