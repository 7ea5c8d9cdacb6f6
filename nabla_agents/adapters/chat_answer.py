"""ChatAnswer: what a run says, as clients of chat APIs read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nabla_agents.chat.reply import Reply
from nabla_agents.chat.streaming import StreamedReply, StreamedText
from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.types import Step


class ChatAnswer:
    """The answer to one request: its reply as that grows, and of the result, in OpenAI's form, why it ended and the
    log-probabilities of its tokens. Its usage is `Result.token_usage`.
    """

    def __init__(self, request: Request, tokenizer: Any, *, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        """`tokenizer` is that of the engine's model; `tools` are those that were offered, in OpenAI's form."""
        self._replies = StreamedReply(request.prompt, request.seed, tools=tools, dialect=tokenizer.dialect)
        self._text, self._tokenizer = StreamedText(), tokenizer

    @property
    def reply(self) -> Reply:
        """What was handed out so far."""
        return self._replies.reply

    def added_by(self, step: Step) -> Reply:
        """What a step adds to the reply, as far as that is certain; may be empty. The last one leaves all to `rest`.

        Raises:
            NablaError: the strategy took back text that it had committed.
        """
        if step.done or not self._text.added_by(step):
            return Reply("")
        return self._replies.grown(self._text.text)

    def rest(self, result: Result) -> Reply:
        """What the result adds to the reply: also what was held back until it was complete; may be empty."""
        return self._replies.ended(result.text)

    def read(self, text: str) -> Reply:
        """The reply of a whole text, whatever was handed out."""
        return self._replies.read(text)

    def call_id(self, index: int) -> str:
        """The name of a call by its place in the reply: the same on every path, and another one in another turn."""
        return self._replies.call_id(index)

    def finish_reason(self, result: Result) -> str:
        """`length`, `tool_calls` or `stop`."""
        called = any(call.error is None for call in self.read(result.text).tool_calls)
        return "length" if result.truncated else "tool_calls" if called else "stop"

    def reasoning_tokens(self, result: Result) -> int:
        """How many of the answer's tokens are thoughts."""
        reasoning = self.read(result.text).reasoning
        return min(len(self._tokenizer.encode(reasoning)), len(result.token_ids)) if reasoning else 0

    def log_probs(self, result: Result) -> list[dict[str, Any]]:
        """An entry for each token: its text, log π in nats, bytes, and the likeliest tokens there if it has them."""
        entries = [self._entry(*pair) for pair in zip(result.token_ids, result.log_probs, strict=False)]
        for entry, alternatives in zip(entries, result.alternatives, strict=False):
            entry["top_logprobs"] = [self._entry(*pair) for pair in alternatives]
        return entries

    def _entry(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self._tokenizer.token_text(token)
        return {"token": text, "logprob": max(log_prob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}
