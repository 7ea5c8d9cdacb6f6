"""Request: one call of a chat model, from messages and options to the engine and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_nabla import _answers, _convert, _messages
from langchain_nabla._progress import report
from nabla_agents import Asked, CommittedReply, CommittedText, Result, SearchJob, Step

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Engine, Prompt, Strategy

ASKED: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "enough")
"""Options that a call has and the model has not."""


class Request:
    """One call: its model with the call's options, its prompt, its searches, and how their results become messages."""

    def __init__(
        self, model: ChatNabla, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> None:
        self.call = model._for_call(kwargs, stop)
        self._engine: Engine = self.call.load()
        asked = Asked.read(
            **{name: kwargs[name] for name in ASKED[:4] if name in kwargs},
            reasoning=self._engine.model.tokenizer.knows_reasoning,
        )
        prompt: Prompt = self._engine.prompt(asked.told(_messages.conversation(messages)), tools=asked.tools)
        options = self.call._engine_options(self._engine, asked.grammar)
        if (enough := kwargs.get("enough")) is not None:
            options["strategy"] = UntilEnough(self._engine.strategy_of(options["strategy"]), enough)
        self.jobs: Final = [
            SearchJob(self._engine, prompt, seed=seed, draft=kwargs.get("draft"), report=report, **options)
            for seed in range(self.call.seed, self.call.seed + self.call.n)
        ]
        self._replies = CommittedReply(prompt, self.call.seed, tools=bool(asked.tools))
        self._text = CommittedText()

    def chat_result(self, results: Sequence[Result]) -> ChatResult:
        """The messages of all answers, best first."""
        results = _convert.best_first(results)
        read = self._replies.read
        messages = [(_messages.message(read(r.text), self._replies), r, self._details(r)) for r in results]
        return _answers.chat_result([_answers.generation(*one) for one in messages], results, self.call.model)

    def chunk(self, step: Step) -> ChatGenerationChunk | None:
        """What a step commits to the message, if anything; the last one completes it."""
        if step.done:
            return self.last_chunk(self.jobs[0].result)
        if not self._text.added_by(step) or not (added := self._replies.grown(self._text.text)):
            return None
        return ChatGenerationChunk(message=_messages.chunk(added, self._replies))

    def last_chunk(self, result: Result) -> ChatGenerationChunk:
        """What is left of the message, with its usage and metadata."""
        rest = _messages.chunk(self._replies.ended(result.text), self._replies)
        return _answers.last_chunk(rest, result, self._details(result))

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
        shown = self._engine.model.tokenizer.token_text
        pairs = zip(result.token_ids, result.log_probs, strict=False)
        return {"content": [{"token": shown(token), "logprob": value} for token, value in pairs]}


@dataclass(frozen=True)
class UntilEnough:
    """A strategy that ends where its best completion's score is enough."""

    strategy: Strategy
    enough: float

    @property
    def rule(self) -> Any:
        return self.strategy.rule

    def steps(self, search: Any) -> Iterator[Step]:
        for step in self.strategy.steps(search):
            yield step
            best = self.select(search.pool)
            if best is not None and best.score is not None and best.score.value >= self.enough:
                return

    def select(self, pool: Any) -> Any:
        return self.strategy.select(pool)
