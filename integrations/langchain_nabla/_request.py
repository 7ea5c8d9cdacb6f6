"""Request: one call of a chat model, from messages and options to the engine and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_nabla import _answers, _convert, _messages
from langchain_nabla._progress import report
from nabla_agents import Asked, CommittedReply, CommittedText, Reply, Result, SearchJob, Step

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Engine, Prompt, Strategy

ASKED: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "enough")
"""Options that a call has and the model has not."""
_AFTER_TEXT: Final = 2
"""Where calls begin among the blocks of output version v1: reasoning and text are 0 and 1, and core merges by index."""


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
        grammar = asked.grammar and replace(asked.grammar, refine=self.call.refine_constrained)
        options = self.call._engine_options(self._engine, grammar)
        if (enough := kwargs.get("enough")) is not None:
            options["strategy"] = UntilEnough(self._engine.strategy_of(options["strategy"]), enough)
        options |= {"draft": kwargs.get("draft"), "top_logprobs": self.call.top_logprobs}
        self.jobs: Final = [
            SearchJob(self._engine, prompt, seed=seed, report=report, **options)
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

    def chunks(self, step: Step) -> Iterator[ChatGenerationChunk]:
        """What a step commits to the message, if anything; the last one completes it."""
        if step.done:
            yield from self.rest(self.jobs[0].result)
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
        others = next((job.alternatives for job in self.jobs if job.result is result), [])
        entries = [self._entry(*pair) for pair in zip(result.token_ids, result.log_probs, strict=False)]
        for entry, found in zip(entries, others, strict=False):
            entry["top_logprobs"] = [self._entry(*pair) for pair in found]
        return {"content": entries}

    def _entry(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self._engine.model.tokenizer.token_text(token)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}


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
