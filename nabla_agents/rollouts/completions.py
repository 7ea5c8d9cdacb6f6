"""One endpoint for completions of token ids: requests, answers, and what is tried again."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nabla_agents.errors import ConfigurationError, RolloutError
from nabla_agents.types import FinishReason

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

BUSY = (408, 409, 425, 429)  # and every 5xx: the server may answer the same request later
LONGEST_WAIT = 60.0  # seconds between two attempts


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


class _Passing(Exception):
    """A failure that may pass; `retry_after` is what the server asked to wait, in seconds."""

    def __init__(self, said: str, retry_after: float = 0.0) -> None:
        super().__init__(said)
        self.retry_after = retry_after


class Completions:
    """A client of one endpoint. Threads may share it.

    Tries again, with growing and jittered pauses, what may pass: a lost connection, a timeout, 408, 409, 425, 429, 5xx,
    an answer that is no JSON object. Every attempt sends the same request, seed included. `Retry-After` is kept to, up
    to a minute.

    Raises:
        ConfigurationError: no http(s) address; httpx or tenacity is not installed.
    """

    def __init__(
        self, url: str, *, api_key: str | None, attempts: int, timeout_seconds: float, client: httpx.Client | None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"The server's address is {url!r}; expected for example http://host:8000/v1.")
        try:
            import httpx
            import tenacity
        except ImportError as e:
            raise ConfigurationError(
                f'Rollouts on a server need {e.name}, which is not installed: pip install "nabla-agents[remote]".'
            ) from e
        self.url = url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = client or httpx.Client(timeout=httpx.Timeout(timeout_seconds, connect=10.0))
        self._attempts = attempts
        self._jittered: Callable[[RetryCallState], float] = tenacity.wait_exponential(
            multiplier=0.25, max=20.0
        ) + tenacity.wait_random(0, 1)

    def close(self) -> None:
        """Closes the connections, those of a client that was passed included."""
        self._client.close()

    def models(self) -> list[dict[str, Any]]:
        """What the server offers, each with `id` and, where it says so, `max_model_len`; empty if it does not list."""
        listed = self._tried("GET", "/models").get("data")
        return [m for m in listed if isinstance(m, dict) and "id" in m] if isinstance(listed, list) else []

    def complete(self, body: Mapping[str, Any], *, stopped: threading.Event | None = None) -> Answer:
        """The whole choices among those that the server returned, perhaps fewer than asked for, never more. Once
        `stopped` is set nothing is tried again.

        Raises:
            ConfigurationError: the server refuses the key.
            RolloutError: it refuses the request, or failed as often as was tried.
        """
        answer = self._tried("POST", "/completions", dict(body), stopped)
        given = answer.get("choices")
        listed = [c for c in given if isinstance(c, dict)] if isinstance(given, list) else []
        listed.sort(key=lambda c: c["index"] if isinstance(c.get("index"), int) else 0)
        choices = [choice for c in listed if (choice := _choice(c)) is not None]
        return Answer(tuple(choices[: body["n"]]), len(body["prompt"]) - _cached(answer))

    def _tried(
        self, method: str, path: str, body: dict[str, Any] | None = None, stopped: threading.Event | None = None
    ) -> dict[str, Any]:
        import tenacity

        stopped = stopped or threading.Event()
        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts) | tenacity.stop_when_event_set(stopped),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(stopped),
            retry=tenacity.retry_if_exception_type(_Passing),
            reraise=True,
        )
        try:
            return tries(self._once, method, path, body)
        except _Passing as e:
            raise RolloutError(f"{self.url}{path} failed {self._attempts} times, the last time by: {e}.") from e

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        asked = failure.retry_after if isinstance(failure, _Passing) else 0.0
        return min(max(asked, 0.0) + self._jittered(state), LONGEST_WAIT)

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import httpx

        try:
            response = self._client.request(method, self.url + path, json=body, headers=self._headers)
        except httpx.TransportError as e:
            raise _Passing(f"{type(e).__name__}: {e}") from e
        if response.status_code in BUSY or response.status_code >= 500:
            raise _Passing(
                f"HTTP {response.status_code}: {_said(response.text)}", _seconds(response.headers.get("retry-after"))
            )
        if response.status_code in (401, 403):
            raise ConfigurationError(
                f"{self.url} refuses the key (HTTP {response.status_code}: {_said(response.text)}); give api_key=... ."
            )
        if method == "GET" and response.status_code in (404, 405):
            return {}
        if response.status_code != 200:
            hint = " The address ends in /v1 with most servers." if response.status_code == 404 else ""
            raise RolloutError(
                f"{self.url}{path} refuses the request (HTTP {response.status_code}: {_said(response.text)}).{hint}"
            )
        try:
            answer = response.json()
        except ValueError as e:
            raise _Passing(f"an answer that is no JSON: {response.text[:200]!r}") from e
        if not isinstance(answer, dict):
            raise _Passing(f"an answer that is no JSON object: {response.text[:200]!r}")
        return answer


def _choice(given: Mapping[str, Any]) -> Choice | None:
    """A choice that came to its end with all of its tokens; None for one that was broken off.

    Raises:
        RolloutError: the server returns no token ids or no log-probabilities at all.
    """
    ids: Any = given.get("token_ids")
    log_probs: Any = (given.get("logprobs") or {}).get("token_logprobs")
    if given.get("finish_reason") not in ("stop", "length"):
        return None
    if not _are(ids, int) or not isinstance(log_probs, Sequence):
        raise RolloutError(
            f"The server returned a choice with {sorted(given)}; expected token_ids (whole numbers) and "
            "logprobs.token_logprobs. Declare how it is asked for them: format=ServerFormat(body={...})."
        )
    if len(log_probs) != len(ids) or not all(_is_log_prob(p) for p in log_probs):
        return None
    prompt: Any = given.get("prompt_token_ids")
    return Choice(
        tuple(ids),
        tuple(float(p) for p in log_probs),
        FinishReason(given["finish_reason"]),
        str(given.get("text") or ""),
        tuple(prompt) if _are(prompt, int) else None,
    )


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _is_log_prob(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value < 1e-3


def _cached(answer: Mapping[str, Any]) -> int:
    """Prompt tokens that were read from the server's prefix cache, as far as it says."""
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return cached if isinstance(cached, int) and cached >= 0 else 0


def _said(text: str) -> str:
    """The message of an OpenAI-shaped error, else the beginning of the text."""
    try:
        answer = json.loads(text)
        error = answer.get("error", answer)
        return str(error.get("message", error))[:300]
    except (ValueError, AttributeError):
        return text[:300]


def _seconds(header: str | None) -> float:
    try:
        return float(header or 0)
    except ValueError:  # a date: the pause is then ours
        return 0.0
