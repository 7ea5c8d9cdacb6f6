"""From the engine's results to LangChain's chat generations: usage, metadata, profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_nabla._convert import token_usage
from nabla_agents import Result

PROVIDER = "nabla"


@dataclass(frozen=True)
class Details:
    """What a message's metadata needs besides the result."""

    model: str
    called: bool
    reasoning_tokens: int
    logprobs: dict[str, Any] | None


def generation(message: AIMessage, result: Result, details: Details) -> ChatGeneration:
    """A whole message with its usage and metadata."""
    message.usage_metadata = usage(result, details)
    message.response_metadata = metadata(result, details)
    return ChatGeneration(message=message, generation_info={"finish_reason": finish_reason(result, details)})


def last_chunk(message: AIMessageChunk, result: Result, details: Details) -> ChatGenerationChunk:
    """The end of a message; the only chunk with usage and metadata."""
    message.usage_metadata = usage(result, details)
    message.response_metadata = metadata(result, details)
    message.chunk_position = "last"
    return ChatGenerationChunk(message=message)


def chat_result(generations: Sequence[ChatGeneration], results: Sequence[Result], model: str) -> ChatResult:
    usages = [token_usage(result) for result in results]
    summed = {name: sum(one[name] for one in usages) for name in token_usage()}
    return ChatResult(generations=list(generations), llm_output={"token_usage": summed, "model_name": model})


def usage(result: Result, details: Details) -> UsageMetadata:
    """Tokens of the prompt and of the returned answer; what the search discarded is in the metadata's ledger."""
    tokens = token_usage(result)
    counted = UsageMetadata(
        input_tokens=tokens["prompt_tokens"],
        output_tokens=tokens["completion_tokens"],
        total_tokens=tokens["total_tokens"],
    )
    if details.reasoning_tokens:
        counted["output_token_details"] = {"reasoning": details.reasoning_tokens}
    return counted


def metadata(result: Result, details: Details) -> dict[str, Any]:
    """Native JSON types only."""
    known = {
        "model_name": details.model,
        "model_provider": PROVIDER,
        "finish_reason": finish_reason(result, details),
        "nabla": result.summary(),
    }
    return known if details.logprobs is None else {**known, "logprobs": details.logprobs}


def finish_reason(result: Result, details: Details) -> str:
    return "length" if result.truncated else "tool_calls" if details.called else "stop"


def profile(engine: Any) -> dict[str, Any]:
    """A model profile; with the context's length where an engine is given."""
    able = ("text_inputs", "text_outputs", "tool_calling", "tool_choice", "structured_output", "reasoning_output")
    unable = (
        *("image_inputs", "image_url_inputs", "pdf_inputs", "audio_inputs", "video_inputs"),
        *("image_tool_message", "pdf_tool_message", "image_outputs", "audio_outputs"),
    )
    limits = {} if engine is None else {"max_input_tokens": engine.model.context_length}
    return {**dict.fromkeys(able, True), **dict.fromkeys(unable, False), "temperature": True, **limits}
