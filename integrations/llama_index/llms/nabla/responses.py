"""From the engine's texts and results to LlamaIndex's responses."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

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
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from nabla_agents import FinishReason, Reply, Result, ToolCall


class Replies:
    """A growing answer of one request, as cumulative responses of one kind, with what each adds."""

    def __init__(self, prompt_text: str, seed: int, *, tools: bool, chat: bool) -> None:
        self._source = f"{prompt_text}\n{seed}"
        self._tools, self._chat, self._thinking = tools, chat, Reply.opens_thinking(prompt_text)
        self._sent = Reply("")

    def read(self, text: str, *, partial: bool = False) -> Reply:
        return Reply.read(text, tools=self._tools, thinking=self._thinking, partial=partial)

    def grown(self, text: str) -> Any:
        """The response so far where a longer text adds something to it, else None."""
        reply, sent = self.read(text, partial=True), self._sent
        if reply == sent:
            return None
        return self._added(reply)

    def rest(self, text: str) -> Any:
        """As `grown`, for the whole text: what was held back until it was complete."""
        reply = self.read(text)
        return None if reply == self._sent else self._added(reply)

    def ended(self, text: str, **facts: Any) -> Any:
        """The whole response; as the last of a stream, it adds no text."""
        return self._response(self.read(text), **facts)

    def _added(self, reply: Reply) -> Any:
        sent, self._sent = self._sent, reply
        thought = reply.reasoning[len(sent.reasoning) :]
        extra = {"thinking_delta": thought} if thought else {}
        return self._response(reply, delta=reply.content[len(sent.content) :], additional_kwargs=extra)

    def _response(self, reply: Reply, **facts: Any) -> Any:
        if not self._chat:
            return CompletionResponse(text=reply.content, **facts)
        blocks: list[ContentBlock] = [ThinkingBlock(content=reply.reasoning)] if reply.reasoning else []
        blocks += [TextBlock(text=reply.content)] if reply.content or not reply.tool_calls else []
        blocks += [self._call(call, i) for i, call in enumerate(reply.tool_calls)]
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), **facts)

    def _call(self, call: ToolCall, index: int) -> ToolCallBlock:
        """A call. Its id is the same on every path, and another one in another turn."""
        call_id = f"call_{uuid.uuid5(uuid.NAMESPACE_OID, self._source + str(index)).hex}"
        kwargs = dict(call.arguments) if call.error is None else call.raw
        return ToolCallBlock(tool_call_id=call_id, tool_name=call.name, tool_kwargs=kwargs)


def chat_event(llm: LLM, messages: Sequence[ChatMessage], response: ChatResponse) -> ChatResponse:
    """The response, after the start and end events of a call that gives it."""
    return llm_chat_callback()(lambda _llm, _messages: response)(llm, messages)


def completion_event(llm: LLM, prompt: str, response: CompletionResponse) -> CompletionResponse:
    """The response, after the start and end events of a call that gives it."""
    return llm_completion_callback()(lambda _llm, _prompt: response)(llm, prompt)


def raw(result: Result, *, called: bool, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Usage of prompt and returned completion, and the search in a few numbers; native JSON types only."""
    prompt, completion = result.prompt_tokens, len(result.token_ids)
    return {
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "finish_reason": "length" if result.truncated else "tool_calls" if called else "stop",
        "nabla": {**result.summary(), **policy},
    }


def log_probs(result: Result, token_text: Any) -> list[list[LogProb]]:
    """log π of each token of the answer, in nats."""
    pairs = zip(result.token_ids, result.log_probs, strict=False)
    texts = ((str(token_text(token)), value) for token, value in pairs)
    return [[LogProb(token=text, logprob=value, bytes=list(text.encode()))] for text, value in texts]


def completed(result: Result) -> Result:
    """The result. The engine answers Ctrl-C with the best so far; here it must end the program, not one call of it.

    Raises:
        KeyboardInterrupt: the search was interrupted.
    """
    if result.finish_reason is FinishReason.INTERRUPTED:
        raise KeyboardInterrupt
    return result
