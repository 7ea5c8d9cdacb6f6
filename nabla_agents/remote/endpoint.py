"""Endpoint: requests to a server, tried again where that may help, and its errors as ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import httpx
import tenacity

from nabla_agents.errors import ConfigurationError, ContextOverflowError, NablaError, PromptError, RemoteError

ResultT = TypeVar("ResultT")
_LONGEST_WAIT: Final = 60.0  # seconds between two attempts


class _Again(Exception):
    """An attempt that failed in a way that may pass: no connection, too busy, or a fault of the server."""

    def __init__(self, error: RemoteError, retry_after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.retry_after = error, retry_after


class Endpoint:
    """A server's base URL and key, and one pool of connections to it. Threads may share it.

    A request is tried again after a connection error, 429 and 5xx, `attempts` times in all, after waits that double
    and are drawn at random, so that clients do not come back together; never after another 4xx, and never once an
    answer has begun.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        timeout: float,
        attempts: int,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        url = base_url.rstrip("/").removesuffix("/v1")
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"base_url is {base_url!r}; expected for example http://127.0.0.1:8000/v1.")
        self.base_url = url
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=httpx.Timeout(timeout, connect=10.0), transport=transport
        )
        self._attempts = attempts

    def close(self) -> None:
        self._http.close()

    def get(self, path: str) -> Any:
        """The JSON of a GET.

        Raises:
            RemoteError: the server cannot be reached, failed, refused the key or has not what is asked for.
        """
        return self._tried(lambda: self._json(self._http.request("GET", path)))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON of a POST.

        Raises:
            PromptError, ContextOverflowError, ConfigurationError, RemoteError: as the server says.
        """
        return self._tried(lambda: self._json(self._http.request("POST", path, content=_written(body), headers=_JSON)))

    def stream(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """A response that has begun and is still to be read; whoever has it closes it. Raises as `post`."""

        def begun() -> httpx.Response:
            request = self._http.build_request("POST", path, content=_written(body), headers=_JSON)
            response = self._http.send(request, stream=True)
            if response.status_code == 200:
                return response
            try:
                response.read()
            finally:
                response.close()
            raise self._failure(response)

        return self._tried(begun)

    def broken(self, why: BaseException | str) -> RemoteError:
        """The error of an answer that broke off."""
        return RemoteError(
            f"The answer of {self.base_url} broke off ({why}). Nothing was resumed; ask again: the same seed gives the "
            "same answer."
        )

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code != 200:
            raise self._failure(response)
        try:
            return response.json()
        except ValueError as e:
            raise RemoteError(f"{self.base_url} answered with what is no JSON; is it a server of `nabla serve`?") from e

    def _tried(self, attempt: Callable[[], ResultT]) -> ResultT:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=_wait,
            retry=tenacity.retry_if_exception_type((_Again, httpx.TransportError)),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _Again as e:
            raise e.error from e
        except httpx.TransportError as e:
            raise RemoteError(
                f"{self.base_url} cannot be reached, tried {self._attempts} times: {type(e).__name__}: {e}. Is "
                "`nabla serve` running there?"
            ) from e

    def _failure(self, response: httpx.Response) -> Exception:
        """The error that a status stands for."""
        message, code = _said(response)
        status = response.status_code
        known: dict[str, type[NablaError]] = {
            "context_length_exceeded": ContextOverflowError,
            "invalid_prompt": PromptError,
        }
        if status == 429 or status >= 500:
            error = RemoteError(f"{self.base_url} answered {status}, tried {self._attempts} times: {message}")
            return _Again(error, _seconds(response.headers.get("retry-after")))
        if code in known:
            return known[code](message)
        if status in (400, 404, 422) and code is not None:
            return ConfigurationError(f"{self.base_url}: {message}")
        return RemoteError(f"{self.base_url} answered {status}: {message}")


_JSON: Final = {"Content-Type": "application/json"}


def _written(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as e:  # not JSON, or half a surrogate pair
        raise PromptError(f"The request cannot be written as JSON in UTF-8: {e}") from e


def _said(response: httpx.Response) -> tuple[str, str | None]:
    """Message and code of a refusal."""
    try:
        error = response.json()["error"]
        return str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:200] or response.reason_phrase, None


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


_jitter = tenacity.wait_random_exponential(multiplier=0.5, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: at random below a bound that doubles, on top of what the server asks for."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = error.retry_after if isinstance(error, _Again) else 0.0
    return min(_LONGEST_WAIT, asked) + _jitter(state)
