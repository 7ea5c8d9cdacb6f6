"""From the engine's texts and results to LlamaIndex's responses."""

from __future__ import annotations

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

from nabla_agents import CommittedReply, Prompt, Reply, Result, ToolCall


class Replies:
    """A growing answer of one request, as cumulative responses of one kind, with what each adds."""

    def __init__(self, prompt: Prompt, seed: int, *, tools: Any, chat: bool, dialect: Any) -> None:
        self._replies, self._chat = CommittedReply(prompt, seed, tools=tools, dialect=dialect), chat
        self.read = self._replies.read

    def grown(self, text: str) -> Any:
        """The response so far where a longer text adds something to it, else None."""
        return self._added(self._replies.grown(text))

    def rest(self, text: str) -> Any:
        """As `grown`, for the whole text: what was held back until it was complete."""
        return self._added(self._replies.ended(text))

    def ended(self, text: str, **facts: Any) -> Any:
        """The whole response; as the last of a stream, it adds no text."""
        return self._response(self.read(text), **facts)

    def _added(self, added: Reply) -> Any:
        if not added:
            return None
        extra = {"thinking_delta": added.reasoning} if added.reasoning else {}
        return self._response(self._replies.reply, delta=added.content, additional_kwargs=extra)

    def _response(self, reply: Reply, **facts: Any) -> Any:
        if not self._chat:
            return CompletionResponse(text=reply.content, **facts)
        blocks: list[ContentBlock] = [ThinkingBlock(content=reply.reasoning)] if reply.reasoning else []
        blocks += [TextBlock(text=reply.content)] if reply.content or not reply.tool_calls else []
        blocks += [self._call(call, i) for i, call in enumerate(reply.tool_calls)]
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks), **facts)

    def _call(self, call: ToolCall, index: int) -> ToolCallBlock:
        kwargs = dict(call.arguments) if call.error is None else call.raw
        return ToolCallBlock(tool_call_id=self._replies.call_id(index), tool_name=call.name, tool_kwargs=kwargs)


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
