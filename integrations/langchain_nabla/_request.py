"""Request: one call of a chat model, from messages and options to the engine and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_nabla import _answers, _convert
from langchain_nabla._engine import Cancellable, UntilEnough, on_worker, turn
from langchain_nabla._messages import Replies, conversation
from langchain_nabla._tools import Constraints, constraints, told
from nabla_agents import Result

if TYPE_CHECKING:
    from langchain_nabla.chat_models import ChatNabla
    from nabla_agents import Engine, Prompt, Run

ASKED: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "draft", "enough")
"""Options that a call has and the model has not."""


class Request:
    """One call: its model with the call's options, its prompt, and how its results become messages."""

    def __init__(
        self, model: ChatNabla, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> None:
        self.call = model._for_call(kwargs, stop)
        self.engine: Engine = self.call.load()
        thinks = "</think>" in str(self.engine.model.tokenizer.hf.chat_template)
        self._asked: Constraints = constraints(
            kwargs.get("tools"),
            kwargs.get("tool_choice"),
            kwargs.get("parallel_tool_calls"),
            kwargs.get("response_format"),
            reasoning=thinks,
        )
        told_of = None if (kwargs.get("response_format") or {}).get("type") == "json_object" else self._asked.schema
        turns = told(conversation(messages), told_of)
        self.prompt: Prompt = self.engine.prompt(turns, tools=self._asked.tools)
        self._draft, self._enough = kwargs.get("draft"), kwargs.get("enough")
        self._replies = Replies(self.prompt.text, self.call.seed, tools=bool(self._asked.tools))

    def run(self) -> Run:
        options = self.call._engine_options(self.engine, self._asked.grammar)
        if self._enough is not None:
            options["strategy"] = UntilEnough(options["strategy"] or self.engine.strategy, self._enough)
        return self.engine.steps(self.prompt, seed=self.call.seed, draft=self._draft, **options)

    def batch(self, strategy: Any) -> list[Result]:
        """`n` results, best first, from one batch."""
        options = self.call._engine_options(self.engine, self._asked.grammar)
        seeds = [self.call.seed + i for i in range(self.call.n)]
        with turn(self.engine):
            results = self.engine.generate_batch(
                [self.prompt] * self.call.n, seeds=seeds, **{**options, "strategy": strategy}
            )
        return _convert.best_first(results)

    async def abatch(self) -> list[Result]:
        strategy = Cancellable(self.call.strategy or self.engine.strategy)
        try:
            return await on_worker(self.engine, self.batch, strategy)
        finally:
            strategy.cancel()

    # ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────

    def chat_result(self, results: Sequence[Result]) -> ChatResult:
        generations = [_answers.generation(self._replies.message(r.text), r, self._details(r)) for r in results]
        return _answers.chat_result(generations, results, self.call.model)

    def chunk(self, text: str) -> ChatGenerationChunk | None:
        """What the committed text adds to the message."""
        added = self._replies.grown(text)
        return None if added is None else ChatGenerationChunk(message=added)

    def last_chunk(self, result: Result) -> ChatGenerationChunk:
        return _answers.last_chunk(self._replies.ended(result.text), result, self._details(result))

    def _details(self, result: Result) -> _answers.Details:
        reply = self._replies.read(result.text)
        encode = self.engine.model.tokenizer.encode
        return _answers.Details(
            model=self.call.model,
            called=any(call.error is None for call in reply.tool_calls),
            reasoning_tokens=min(len(encode(reply.reasoning)), len(result.token_ids)) if reply.reasoning else 0,
            logprobs=self._logprobs(result) if self.call.logprobs else None,
        )

    def _logprobs(self, result: Result) -> dict[str, Any]:
        shown = self.engine.model.tokenizer.token_text
        pairs = zip(result.token_ids, result.log_probs, strict=False)
        return {"content": [{"token": shown(token), "logprob": value} for token, value in pairs]}
