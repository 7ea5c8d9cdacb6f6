"""NablaLLM: the engine as a LlamaIndex language model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from llama_index.llms.nabla.call import Call
from llama_index.llms.nabla.responses import chat_event, completion_event
from llama_index.llms.nabla.structured import StructuredAnswers
from nabla_agents import CommittedText, Run


class NablaLLM(StructuredAnswers):
    """A language model whose answers are refined by gradients and rewards.

    `NablaLLM(model="tiny")` loads at first use, once per process for equal loading settings; `NablaLLM(engine=engine)`
    shares an engine, with its reward and strategy. Options may be given per call, by `with_options` or by the scope
    `nabla_options`; the nearer goes first. The same seed gives the same text from each of the eight methods.

    By `refine_policy`, only answers that the user sees are refined: not what selectors, rerankers, retrievers, question
    generators and the inner nodes of a summary ask. Tool calls and structured answers are decoded under a grammar.
    What was spent and found is in `raw["nabla"]`, also of a stream's last chunk.

    A prompt for `complete` is one user turn of the chat template, if the model has one, and verbatim with
    `formatted=True` or a `completion_to_prompt` of your own. As in every LlamaIndex model, `system_prompt` is added by
    `predict`, query engines and chat engines, not by direct calls of these methods.
    """

    @classmethod
    def class_name(cls) -> str:
        return "NablaLLM"

    # ── the eight methods: decorated once, none through another ───────────────────────────────────────────────────

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _answer(Call(self, messages, False, kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _answer(Call(self, prompt, formatted, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return _stream(Call(self, messages, False, kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return _stream(Call(self, prompt, formatted, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await _aanswer(Call(self, messages, False, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return await _aanswer(Call(self, prompt, formatted, kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return _astream(Call(self, messages, False, kwargs))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        return _astream(Call(self, prompt, formatted, kwargs))

    # ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────

    def chat_batch(self, conversations: Sequence[Sequence[ChatMessage]], **kwargs: Any) -> list[ChatResponse]:
        """One response per conversation, as `chat` gives it, from one batch. Events are sent when all have ended."""
        responses = _batch([Call(self, messages, False, kwargs) for messages in conversations])
        return [chat_event(self, messages, r) for messages, r in zip(conversations, responses, strict=True)]

    def complete_batch(
        self, prompts: Sequence[str], formatted: bool = False, **kwargs: Any
    ) -> list[CompletionResponse]:
        """One response per prompt, as `complete` gives it, from one batch. Events are sent when all have ended."""
        responses = _batch([Call(self, prompt, formatted, kwargs) for prompt in prompts])
        return [completion_event(self, prompt, r) for prompt, r in zip(prompts, responses, strict=True)]


# ── the only ways to the engine ───────────────────────────────────────────────────────────────────────────────────────


def _answer(call: Call) -> Any:
    return call.finished(call.followed(call.start()))


async def _aanswer(call: Call) -> Any:
    """As `_answer`, off the event loop, and in one batch with what else is searched."""
    run = await asyncio.to_thread(call.start)
    return call.finished(await call.afollowed(run))


def _stream(call: Call) -> Generator[Any, None, None]:
    text = CommittedText()
    with call.start(on_demand=True) as run:
        for step in run:
            call.report(step)
            if text.added_by(step) and not step.done and (chunk := call.replies.grown(text.text)) is not None:
                yield chunk
        yield from _last(call, run)


async def _astream(call: Call) -> AsyncGenerator[Any, None]:
    """As `_stream`. The next step is computed when it is asked for, so an abandoned stream costs nothing more."""
    text = CommittedText()
    async with await asyncio.to_thread(call.start, on_demand=True) as run:
        async for step in run:
            call.report(step)
            if text.added_by(step) and not step.done and (chunk := call.replies.grown(text.text)) is not None:
                yield chunk
        for chunk in _last(call, run):
            yield chunk


def _last(call: Call, run: Run) -> Generator[Any, None, None]:
    """What was not yet said, and the whole response."""
    if (chunk := call.replies.rest(run.result.text)) is not None:
        yield chunk
    yield call.finished(run.result, delta="")


def _batch(calls: Sequence[Call]) -> list[Any]:
    """One response per call; their searches run side by side."""
    runs = [call.start() for call in calls]
    return [call.finished(call.followed(run)) for call, run in zip(calls, runs, strict=True)]
