"""From results to what clients get: OpenAI's objects, whole or in pieces that add up, with the field `nabla`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nabla_agents.chat.reply import Reply
from nabla_agents.chat.streaming import StreamedReply, StreamedText
from nabla_agents.chat.tool_calls import ToolCall
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.request import Request
from nabla_agents.result import Result
from nabla_agents.serialization import SentResult, SentStep
from nabla_agents.serve.protocol import ChatRequest, CompletionRequest
from nabla_agents.serve.service import Served
from nabla_agents.serve.telemetry import became
from nabla_agents.types import Step, Usage

Json = dict[str, Any]


class ChatChoice:
    """One choice of a chat: its message, whole or as deltas that add up to it."""

    prefix, kind, kind_streamed = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, body: ChatRequest, served: Served, request: Request, tools: Sequence[Mapping[str, Any]] | None
    ) -> None:
        self.prompt, self._tokenizer = request.prompt, served.engine.model.tokenizer
        self._draft = request.draft
        self._logprobs = bool(body.logprobs)
        self._replies = StreamedReply(request.prompt, request.seed, tools=tools, dialect=self._tokenizer.dialect)

    @property
    def opening(self) -> Json | None:
        return {"delta": {"role": "assistant", "content": ""}}

    def grown(self, text: str, added: str) -> Json | None:
        """The piece that a longer text adds."""
        delta = self._delta(self._replies.grown, text) if added else {}
        return {"delta": delta} if delta else None

    def rest(self, result: Result, told: str) -> list[Json]:
        """The pieces that the whole text adds, the last of them with how it ended."""
        delta = self._delta(self._replies.ended, result.text)
        return [*([{"delta": delta}] if delta else []), {"delta": {}, **self._ending(result)}]

    def whole(self, result: Result) -> Json:
        reply = self._replies.read(result.text)
        content = reply.content or (None if reply.tool_calls else "")
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [self._call(call, i) for i, call in enumerate(reply.tool_calls)]
        return {"message": message, **self._ending(result)}

    def reasoning_tokens(self, result: Result) -> int | None:
        reasoning = self._replies.read(result.text).reasoning
        return min(len(self._tokenizer.encode(reasoning)), len(result.token_ids)) if reasoning else 0

    def _ending(self, result: Result) -> Json:
        """Log-probabilities, finish reason and the search in a few numbers."""
        reply, logprobs = self._replies.read(result.text), None
        if self._logprobs:
            start = result.text.rfind(reply.content) if reply.content else len(result.text)
            entries = token_log_probs(self._tokenizer, result, start, start + len(reply.content))
            logprobs = {"content": entries, "refusal": None}
        called = any(call.error is None for call in reply.tool_calls)
        reason = "length" if result.truncated else "tool_calls" if called else "stop"
        return {"logprobs": logprobs, "finish_reason": reason, "nabla": summary(result, self._draft)}

    def _delta(self, read: Callable[[str], Reply], text: str) -> Json:
        """What the text adds to the reply so far; may be empty."""
        first = len(self._replies.reply.tool_calls)
        added, delta = read(text), dict[str, Any]()
        if added.content:
            delta["content"] = added.content
        if added.reasoning:
            delta["reasoning_content"] = added.reasoning
        if added.tool_calls:
            calls = enumerate(added.tool_calls, first)
            delta["tool_calls"] = [{"index": i, **self._call(call, i)} for i, call in calls]
        return delta

    def _call(self, call: ToolCall, index: int) -> Json:
        """A call; one that cannot be read has what the model wrote as arguments."""
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False) if call.error is None else call.raw
        function = {"name": call.name, "arguments": arguments}
        return {"id": self._replies.call_id(index), "type": "function", "function": function}


class TextChoice:
    """A choice of `/v1/completions`. Log-probabilities are those of all its tokens, a textless one at the end too."""

    prefix, kind, kind_streamed = "cmpl", "text_completion", "text_completion"
    opening: Json | None = None

    def __init__(self, body: CompletionRequest, served: Served, request: Request) -> None:
        self.prompt, self._tokenizer = request.prompt, served.engine.model.tokenizer
        self._draft = request.draft
        self._logprobs, self._token_ids = body.logprobs is not None, bool(body.return_token_ids)

    def grown(self, text: str, added: str) -> Json | None:
        return {"text": added} if added else None

    def rest(self, result: Result, told: str) -> list[Json]:
        logprobs = None
        if self._logprobs:
            entries = token_log_probs(self._tokenizer, result, 0, len(result.text), textless=True)
            logprobs = {
                "tokens": [e["token"] for e in entries],
                "token_logprobs": [e["logprob"] for e in entries],
                "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries],
                "text_offset": [sum(len(e["token"]) for e in entries[:i]) for i in range(len(entries))],
            }
        ids = {"token_ids": list(result.token_ids), "prompt_token_ids": list(self.prompt.ids)}
        reason = "length" if result.truncated else "stop"
        ending = {"logprobs": logprobs, "finish_reason": reason, "nabla": summary(result, self._draft)}
        return [{"text": result.text[len(told) :], **ending, **(ids if self._token_ids else {})}]

    def whole(self, result: Result) -> Json:
        return self.rest(result, "")[-1]

    def reasoning_tokens(self, result: Result) -> int | None:
        """None: thoughts are not told apart."""


class Answer:
    """The answer to a request of OpenAI's: an envelope around its choices, whole or in pieces. `beside` goes into the
    field `nabla` of the whole.
    """

    def __init__(
        self,
        body: ChatRequest | CompletionRequest,
        choices: Sequence[ChatChoice | TextChoice],
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        self._beside = beside or {}
        self._choices, self._texts = choices, [StreamedText() for _ in choices]
        self._with_usage = body.with_usage
        self._head: Json = {
            "id": f"{choices[0].prefix}-{uuid.uuid4().hex}",
            "object": choices[0].kind_streamed if body.stream else choices[0].kind,
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, results: Sequence[Result], queued_seconds: float) -> Json:
        choices = enumerate(choice.whole(result) for choice, result in zip(self._choices, results, strict=True))
        whole = [{"index": i, **choice} for i, choice in choices]
        return {**self._head, "choices": whole, **self._cost(results, queued_seconds)}

    def first(self) -> list[Json]:
        return [self._piece(i, c.opening) for i, c in enumerate(self._choices) if c.opening is not None]

    def step(self, index: int, step: Step) -> list[Json]:
        text = self._texts[index]
        piece = None if step.done else self._choices[index].grown(step.committed_text, text.added_by(step))
        return [] if piece is None else [self._piece(index, piece)]

    def end(self, index: int, result: Result) -> list[Json]:
        return [self._piece(index, piece) for piece in self._choices[index].rest(result, self._texts[index].text)]

    def last(self, results: Sequence[Result], queued_seconds: float) -> list[Json]:
        return [{**self._head, "choices": [], **self._cost(results, queued_seconds)}] if self._with_usage else []

    def _piece(self, index: int, piece: Json) -> Json:
        ending = {name: piece.get(name) for name in ("logprobs", "finish_reason")}
        return {**self._head, "choices": [{"index": index, **piece, **ending}]}

    def _cost(self, results: Sequence[Result], queued_seconds: float) -> Json:
        """Tokens as OpenAI counts them: each prompt once, and the returned completions. The field `nabla` says what all
        choices cost together, and how long the first one waited.
        """
        pairs = list(zip(self._choices, results, strict=True))
        prompt = sum({id(choice.prompt): result.prompt_tokens for choice, result in pairs}.values())
        completion = sum(len(result.token_ids) for result in results)
        usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        thoughts = [n for choice, result in pairs if (n := choice.reasoning_tokens(result)) is not None]
        if thoughts:
            usage["completion_tokens_details"] = {"reasoning_tokens": sum(thoughts)}
        spent = sum((result.usage for result in results), Usage())
        return {
            "usage": usage,
            "nabla": {"usage": spent.as_dict(), "queued_seconds": round(queued_seconds, 6), **self._beside},
        }


class StepsAnswer:
    """The steps of one search as they are made, and its result, as `nabla_agents.serialization` has them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def first(self) -> list[Json]:
        return []

    def step(self, index: int, step: Step) -> list[Json]:
        return [SentStep(step=step).model_dump(mode="json")]

    def end(self, index: int, result: Result) -> list[Json]:
        texts = [self._tokenizer.token_text(token) for token in result.token_ids]
        return [{"result": SentResult.of(result, texts).model_dump(mode="json")}]

    def last(self, results: Sequence[Result], queued_seconds: float) -> list[Json]:
        return []


def summary(result: Result, draft: str | None = None) -> Json:
    """The verdict, the trace in a few numbers and the ledger of one choice; what became of its draft, if it had one."""
    score = result.score
    verdict = None if score is None or score.verdict is None or not math.isfinite(score.verdict) else score.verdict
    told = {} if draft is None else {"draft": became(draft, result)}
    return {**result.summary(), "verdict": verdict, **told}


def token_log_probs(
    tokenizer: Tokenizer, result: Result, start: int, end: int, *, textless: bool = False
) -> list[Json]:
    """Log π in nats of each token that has characters in start:end of the text, and of the likeliest others there;
    with `textless` of every token.
    """
    text = tokenizer.decode(result.token_ids)
    entries: list[Json] = []
    for i, (begin, stop) in enumerate(tokenizer.token_offsets(result.token_ids)):
        begin, stop = max(begin, start), min(stop, end)
        if begin >= stop and not textless:
            continue
        others = result.alternatives[i] if i < len(result.alternatives) else []
        top = [_entry(tokenizer.token_text(token), value) for token, value in others]
        entries.append({**_entry(text[begin:stop], result.log_probs[i]), "top_logprobs": top})
    return entries


def _entry(token: str, value: float) -> Json:
    return {"token": token, "logprob": max(value, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}
