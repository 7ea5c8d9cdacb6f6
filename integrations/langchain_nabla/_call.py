"""Call: one call of a chat model, from messages and options to the engine and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_nabla import _answers, _convert, _messages, _progress
from nabla_agents import Asked, CommittedReply, CommittedText, Reply, Request, Result, Run, Step

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Engine, Prompt

ASKED: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "enough")
"""Options that a call has and the model has not."""
_AFTER_TEXT: Final = 2
"""Where calls begin among the blocks of output version v1: reasoning and text are 0 and 1, and core merges by index."""


class Call:
    """One call: its model with the call's options, its requests, and how their results become messages."""

    def __init__(
        self, model: ChatNabla, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> None:
        self.call = model._for_call(kwargs, stop)
        self._engine: Engine = self.call.load()
        asked = Asked.read(
            **{name: kwargs[name] for name in ASKED[:4] if name in kwargs},
            reasoning=self._engine.model.tokenizer.knows_reasoning,
            dialect=self._engine.model.tokenizer.dialect,
        )
        prompt: Prompt = self._engine.prompt(asked.told(_messages.conversation(messages)), tools=asked.tools)
        grammar = asked.grammar and replace(asked.grammar, refine=self.call.refine_constrained)
        self.requests: Final = [
            Request(
                prompt=prompt,
                seed=seed,
                draft=kwargs.get("draft"),
                until=_until(kwargs.get("enough")),
                top_logprobs=self.call.top_logprobs,
                **self.call._engine_options(self._engine, grammar),
            )
            for seed in range(self.call.seed, self.call.seed + self.call.n)
        ]
        self._replies = CommittedReply(
            prompt, self.call.seed, tools=asked.tools, dialect=self._engine.model.tokenizer.dialect
        )
        self._text = CommittedText()

    def results(self) -> list[Result]:
        """Of all searches, which run side by side; each step of theirs is reported."""
        runs = [self._engine.submit(request) for request in self.requests]
        return [_progress.followed(run) for run in runs]

    async def aresults(self) -> list[Result]:
        """As `results`; cancelled with the task that awaits it."""
        runs = [self._engine.submit(request) for request in self.requests]
        return await asyncio.gather(*(_progress.afollowed(run) for run in runs))

    def run(self) -> Run:
        """The one search, whose steps are computed as they are asked for."""
        return self._engine.submit(self.requests[0], on_demand=True)

    def chat_result(self, results: Sequence[Result]) -> ChatResult:
        """The messages of all answers, best first."""
        results = _convert.best_first(results)
        read = self._replies.read
        messages = [(_messages.message(read(r.text), self._replies), r, self._details(r)) for r in results]
        return _answers.chat_result([_answers.generation(*one) for one in messages], results, self.call.model)

    def chunks(self, run: Run, step: Step) -> Iterator[ChatGenerationChunk]:
        """What a step commits to the message, if anything; the last one completes it."""
        if step.done:
            yield from self.rest(run.result)
        elif self._text.added_by(step):
            yield from self._chunks(self._replies.grown(self._text.text))

    def rest(self, result: Result) -> Iterator[ChatGenerationChunk]:
        """What is left of the message, and by itself the chunk that ends it, with usage and metadata."""
        yield from self._chunks(self._replies.ended(result.text))
        yield _answers.last_chunk(AIMessageChunk(content=""), result, self._details(result))

    def _chunks(self, added: Reply) -> Iterator[ChatGenerationChunk]:
        if added:
            first = _AFTER_TEXT if self.call.output_version == "v1" else 0
            yield ChatGenerationChunk(message=_messages.chunk(added, self._replies, first))

    def _details(self, result: Result) -> _answers.Details:
        reply = self._replies.read(result.text)
        encode = self._engine.model.tokenizer.encode
        return _answers.Details(
            model=self.call.model,
            called=any(call.error is None for call in reply.tool_calls),
            reasoning_tokens=min(len(encode(reply.reasoning)), len(result.token_ids)) if reply.reasoning else 0,
            logprobs=self._logprobs(result) if self.call.logprobs else None,
        )

    def _logprobs(self, result: Result) -> dict[str, Any]:
        """In OpenAI's form."""
        entries = [self._entry(*pair) for pair in zip(result.token_ids, result.log_probs, strict=False)]
        for entry, found in zip(entries, result.alternatives, strict=False):
            entry["top_logprobs"] = [self._entry(*pair) for pair in found]
        return {"content": entries}

    def _entry(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self._engine.model.tokenizer.token_text(token)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


def _until(enough: float | None) -> Callable[[Step], bool] | None:
    """Whether a completion's score is enough to end the search with it; None where that is not asked."""
    if enough is None:
        return None
    return lambda step: step.score is not None and step.score.value >= enough
