"""From the engine's results and steps to LlamaIndex's responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from nabla_agents import FinishReason, Result


def chat_response(text: str, *, delta: str | None = None, result: Result | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, raw=None if result is None else raw(result))


def completion_response(text: str, *, delta: str | None = None, result: Result | None = None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=None if result is None else raw(result))


def chat_event(llm: LLM, messages: Sequence[ChatMessage], response: ChatResponse) -> ChatResponse:
    """The response, after the start and end events of a call that gives it."""
    return llm_chat_callback()(lambda _llm, _messages: response)(llm, messages)


def completion_event(llm: LLM, prompt: str, response: CompletionResponse) -> CompletionResponse:
    """The response, after the start and end events of a call that gives it."""
    return llm_completion_callback()(lambda _llm, _prompt: response)(llm, prompt)


def raw(result: Result) -> dict[str, Any]:
    """Usage of prompt and returned completion, and the search in a few numbers; native JSON types only."""
    prompt, completion = result.prompt_tokens, len(result.token_ids)
    return {
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "finish_reason": "length" if result.truncated else "stop",
        "nabla": result.summary(),
    }


def completed(result: Result) -> Result:
    """The result. The engine answers Ctrl-C with the best so far; here it must end the program, not one call of it.

    Raises:
        KeyboardInterrupt: the search was interrupted.
    """
    if result.finish_reason is FinishReason.INTERRUPTED:
        raise KeyboardInterrupt
    return result
