"""Completions of token ids from a server: what is asked, and what of the answer is whole."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents.backends.http import Failure, HttpClient
from nabla_agents.errors import ConfigurationError, NablaError, RolloutError
from nabla_agents.types import FinishReason


@dataclass(frozen=True)
class Choice:
    """One completion as the server gave it: its new tokens, log π of each as the server counts it, and its end."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: FinishReason
    text: str
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Answer:
    """The whole choices of one response, and the prompt tokens that its server had to read."""

    choices: tuple[Choice, ...]
    read_tokens: int


def complete(http: HttpClient, body: Mapping[str, Any], *, stopped: threading.Event | None = None) -> Answer:
    """The whole choices among those that the server returned, perhaps fewer than asked for, never more. Once `stopped`
    is set nothing is tried again.

    Raises:
        ConfigurationError: the server refuses the key.
        RolloutError: it refuses the request, or failed as often as was tried.
    """
    answer = http.post("/completions", body, stopped=stopped)
    items = answer.get("choices")
    listed = [c for c in items if isinstance(c, dict)] if isinstance(items, list) else []
    listed.sort(key=lambda c: c["index"] if isinstance(c.get("index"), int) else 0)
    choices = [choice for c in listed if (choice := _choice(c)) is not None]
    return Answer(tuple(choices[: body["n"]]), max(len(body["prompt"]) - _cached(answer), 0))


def models(http: HttpClient) -> list[dict[str, Any]]:
    """What the server offers, each with `id` and, where it says so, `max_model_len`; empty if it does not list."""
    try:
        listed = http.get("/models").get("data")
    except RolloutError as e:
        if isinstance(e.__cause__, Failure) and e.__cause__.status in (404, 405):
            return []
        raise
    return [m for m in listed if isinstance(m, dict) and "id" in m] if isinstance(listed, list) else []


def rollout_error(failure: Failure) -> NablaError:
    """The error of a request for rollouts that failed."""
    url, path = failure.url, failure.path
    if failure.status in (None, 200) and not failure.may_pass:
        return RolloutError(f"{url}{path} gave {failure}.")
    if failure.may_pass:
        return RolloutError(f"{url}{path} failed {failure.attempts} times, the last time by: {failure}.")
    if failure.status in (401, 403):
        return ConfigurationError(f"{url} refuses the key ({failure}); give api_key=... .")
    hint = " The address ends in /v1 with most servers." if failure.status == 404 else ""
    return RolloutError(f"{url}{path} refuses the request ({failure}).{hint}")


def _choice(item: Mapping[str, Any]) -> Choice | None:
    """A choice that came to its end with all of its tokens; None for one that was broken off.

    Raises:
        RolloutError: the server returns no token ids or no log-probabilities at all.
    """
    ids: Any = item.get("token_ids")
    log_probs: Any = _in(item, "logprobs").get("token_logprobs")
    if item.get("finish_reason") not in ("stop", "length"):
        return None
    if not _are(ids, int) or not isinstance(log_probs, Sequence):
        raise RolloutError(
            f"The server returned a choice with {sorted(item)}; expected token_ids (whole numbers) and "
            "logprobs.token_logprobs. Declare how it is asked for them: format=ServerFormat(body={...})."
        )
    if len(log_probs) != len(ids) or not all(_is_log_prob(p) for p in log_probs):
        return None
    prompt: Any = item.get("prompt_token_ids")
    return Choice(
        tuple(ids),
        tuple(float(p) for p in log_probs),
        FinishReason(item["finish_reason"]),
        str(item.get("text") or ""),
        tuple(prompt) if _are(prompt, int) else None,
    )


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _is_log_prob(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value) and value < 1e-3
    except OverflowError:  # a whole number beyond every float
        return False


def _cached(answer: Mapping[str, Any]) -> int:
    """Prompt tokens that were read from the server's prefix cache, as far as it says."""
    cached: Any = _in(_in(answer, "usage"), "prompt_tokens_details").get("cached_tokens")
    return cached if isinstance(cached, int) and cached >= 0 else 0


def _in(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object of this name; empty where there is none."""
    inner: Any = item.get(name)
    return inner if isinstance(inner, dict) else {}
