"""From results to what clients get: OpenAI's objects, whole or in pieces, with the field `nabla`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from nabla_agents.chat.committed import CommittedReply
from nabla_agents.chat.reply import Reply
from nabla_agents.chat.tool_calls import ToolCall
from nabla_agents.result import Result
from nabla_agents.serve.service import Searching
from nabla_agents.types import Usage


class Envelope:
    """What all pieces of one answer have in common."""

    def __init__(self, prefix: str, kind: str, model: str) -> None:
        self.id, self.kind, self.model = f"{prefix}-{uuid.uuid4().hex}", kind, model
        self.created = int(time.time())

    def of(self, choices: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **fields,
        }


class ChatChoice:
    """One choice of a chat: its message, whole or as deltas that add up to it."""

    def __init__(self, index: int, search: Searching, *, tools: Sequence[Mapping[str, Any]] | None) -> None:
        self.index, self.search = index, search
        request, tokenizer = search.ask.request, search.ask.served.engine.model.tokenizer
        self._replies = CommittedReply(request.prompt, request.seed, tools=tools, dialect=tokenizer.dialect)

    def grown(self, text: str) -> dict[str, Any]:
        """What a longer committed text adds; may be empty."""
        first = len(self._replies.reply.tool_calls)
        return self._delta(self._replies.grown(text), first)

    def rest(self, result: Result) -> dict[str, Any]:
        """What the whole text adds; may be empty."""
        first = len(self._replies.reply.tool_calls)
        return self._delta(self._replies.ended(result.text), first)

    def read(self, result: Result) -> Reply:
        return self._replies.read(result.text)

    def whole(self, result: Result) -> dict[str, Any]:
        """The choice of an answer that is not streamed."""
        reply = self.read(result)
        message: dict[str, Any] = {"role": "assistant", "content": reply.content or None, "refusal": None}
        if not reply.tool_calls:
            message["content"] = reply.content
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message["tool_calls"] = [self._call(call, i) for i, call in enumerate(reply.tool_calls)]
        return {"index": self.index, "message": message, **self.ending(result)}

    def ending(self, result: Result) -> dict[str, Any]:
        """Finish reason, log-probabilities and the search in a few numbers."""
        reply = self.read(result)
        found = {"logprobs": None, "finish_reason": finish_reason(result, reply), "nabla": summary(result)}
        if self.search.ask.logprobs:
            start = result.text.rfind(reply.content) if reply.content else len(result.text)
            entries = token_log_probs(self.search, result, start, start + len(reply.content))
            found["logprobs"] = {"content": entries, "refusal": None}
        return found

    def _delta(self, added: Reply, first: int) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if added.content:
            delta["content"] = added.content
        if added.reasoning:
            delta["reasoning_content"] = added.reasoning
        if added.tool_calls:
            calls = enumerate(added.tool_calls, first)
            delta["tool_calls"] = [{"index": i, **self._call(call, i)} for i, call in calls]
        return delta

    def _call(self, call: ToolCall, index: int) -> dict[str, Any]:
        """A call; one that cannot be read has what the model wrote as arguments."""
        arguments = json.dumps(dict(call.arguments), ensure_ascii=False) if call.error is None else call.raw
        function = {"name": call.name, "arguments": arguments}
        return {"id": self._replies.call_id(index), "type": "function", "function": function}


def text_choice(
    index: int, search: Searching, result: Result, text: str, *, with_token_ids: bool = False
) -> dict[str, Any]:
    """A choice of `/v1/completions`, whole or as the last piece of a stream. Its log-probabilities are those of all its
    tokens, also of the one that ends it and has no text.
    """
    logprobs = None
    if search.ask.logprobs:
        entries = token_log_probs(search, result, 0, len(result.text), textless=True)
        logprobs = {
            "tokens": [e["token"] for e in entries],
            "token_logprobs": [e["logprob"] for e in entries],
            "top_logprobs": [{t["token"]: t["logprob"] for t in e["top_logprobs"]} for e in entries],
            "text_offset": [sum(len(e["token"]) for e in entries[:i]) for i in range(len(entries))],
        }
    found = {"logprobs": logprobs, "finish_reason": finish_reason(result), "nabla": summary(result)}
    if with_token_ids:
        found |= {"token_ids": list(result.token_ids), "prompt_token_ids": list(search.ask.request.prompt.ids)}
    return {"index": index, "text": text, **found}


def finish_reason(result: Result, reply: Reply | None = None) -> str:
    called = reply is not None and any(call.error is None for call in reply.tool_calls)
    return "length" if result.truncated else "tool_calls" if called else "stop"


def summary(result: Result) -> dict[str, Any]:
    """The verdict, the trace in a few numbers and the ledger of one choice."""
    score = result.score
    verdict = None if score is None or score.verdict is None or not math.isfinite(score.verdict) else score.verdict
    return {**result.summary(), "verdict": verdict}


def usage(
    searches: Sequence[Searching], results: Sequence[Result], choices: Sequence[ChatChoice] = ()
) -> dict[str, Any]:
    """Tokens as OpenAI counts them: each prompt once, and the returned completions."""
    prompts = {
        id(search.ask.request.prompt): result.prompt_tokens for search, result in zip(searches, results, strict=True)
    }
    prompt, completion = sum(prompts.values()), sum(len(result.token_ids) for result in results)
    counted: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if choices:
        thoughts = 0
        for choice, result in zip(choices, results, strict=True):
            if reasoning := choice.read(result).reasoning:
                encode = choice.search.ask.served.engine.model.tokenizer.encode
                thoughts += min(len(encode(reasoning)), len(result.token_ids))
        counted["completion_tokens_details"] = {"reasoning_tokens": thoughts}
    return counted


def ledger(searches: Sequence[Searching], results: Sequence[Result]) -> dict[str, Any]:
    """The field `nabla` of a whole answer: what all choices cost together, and how long the first one waited."""
    spent = sum((result.usage for result in results), Usage())
    return {"usage": spent.as_dict(), "queued_seconds": round(min(s.queued_seconds for s in searches), 6)}


def token_log_probs(
    search: Searching, result: Result, start: int, end: int, *, textless: bool = False
) -> list[dict[str, Any]]:
    """Log π in nats of each token that has characters in start:end of the text, and of the likeliest others there;
    with `textless` of every token.
    """
    tokenizer = search.ask.served.engine.model.tokenizer
    text = tokenizer.decode(result.token_ids)
    entries: list[dict[str, Any]] = []
    for i, (begin, stop) in enumerate(tokenizer.token_offsets(result.token_ids)):
        begin, stop = max(begin, start), min(stop, end)
        if begin >= stop and not textless:
            continue
        others = result.alternatives[i] if i < len(result.alternatives) else []
        top = [_entry(tokenizer.token_text(token), value) for token, value in others]
        entries.append({**_entry(text[begin:stop], result.log_probs[i]), "top_logprobs": top})
    return entries


def _entry(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(value, -9999.0), "bytes": list(token.encode("utf-8", "replace"))}
