"""HttpClient: JSON and streams from a server, tried again where that may help."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final, TypeVar

from nabla_agents.errors import ConfigurationError, NablaError, PromptError, to_install
from nabla_agents.json_text import read_json

try:
    import httpx
except ImportError as e:
    raise ConfigurationError(f"A server is asked with {e.name}, which is not installed: {to_install('remote')}.") from e

from nabla_agents.backends.body import BodyError, Incoming, beginning, whole
from nabla_agents.backends.deadline import limit, until

ResultT = TypeVar("ResultT")
BUSY: Final = (408, 409, 425, 429)  # and every 5xx: the server may answer the same request later
LONGEST_PAUSE: Final = 60.0  # seconds between two attempts
_SHOWN: Final = 300  # characters of an answer that is none
_SAID: Final = 2_000  # of what a server says


@dataclass(eq=False)
class Failure(Exception):
    """A request that failed: `status` and `code` are those of the answer, None where no answer came."""

    url: str
    path: str
    message: str
    status: int | None = None
    code: str | None = None
    may_pass: bool = True
    retry_after: float = 0.0
    attempts: int = 1

    def __str__(self) -> str:
        return self.message if self.status in (None, 200) else f"HTTP {self.status}: {self.message}"


class HttpClient:
    """A server's address and key, and one pool of connections to it. Threads may share it.

    Tries again, `attempts` times in all and with growing and jittered pauses, what may pass: a lost connection, a
    timeout, 408, 409, 425, 429, 5xx, an answer that is no JSON object; never another refusal, and never once an answer
    has begun to stream. Every attempt sends the same request. `Retry-After` is kept to, up to a minute.

    A server may send what it wants, as slowly or endlessly as it wants: bodies and lines of a stream have at most 64
    MiB, compressed ones are refused, and every request ends.

    Args:
        error: the error to raise for what failed in the end.
        client: for proxies, certificates or headers of your own, in place of `transport`.
        timeout: seconds that an attempt may take; of a stream, its beginning, and each sign of life after it.
        deadline: seconds that a request may take in all: attempts, pauses, and a stream up to its end.

    Raises:
        ConfigurationError: no http(s) address, `attempts` below 1, or no seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        error: Callable[[Failure], NablaError],
        api_key: str | None,
        attempts: int,
        timeout: float,
        deadline: float = math.inf,
        client: httpx.Client | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"The server's address is {url!r}; expected for example http://host:8000/v1.")
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise ConfigurationError(f"attempts is {attempts!r}; expected a whole number of at least 1.")
        for name, seconds in (("timeout", timeout), ("deadline", deadline)):
            if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds > 0:
                raise ConfigurationError(f"{name} is {seconds!r}; expected a number of seconds above 0.")
        self.url = url.rstrip("/")
        self._error, self._attempts = error, attempts
        self._timeout, self._deadline = timeout, deadline
        self._headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
        seconds = httpx.Timeout(timeout, connect=10.0)
        self._client = client or httpx.Client(timeout=seconds, transport=transport, cookies=none)
        limit(self._client)

    def close(self) -> None:
        """Closes the connections, those of a client that was passed included."""
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path. Raises what `error` makes of a failure."""
        return self._tried(lambda moment: self._json("GET", path, None, moment))

    def post(self, path: str, body: Mapping[str, Any], *, stopped: threading.Event | None = None) -> dict[str, Any]:
        """The JSON object that answers a body; once `stopped` is set nothing is tried again.

        Raises:
            PromptError: the body cannot be written as JSON; besides, what `error` makes of a failure.
        """
        content = _written(body)
        return self._tried(lambda moment: self._json("POST", path, content, moment), stopped)

    def stream(self, path: str, body: Mapping[str, Any], *, stopped: threading.Event | None = None) -> Incoming:
        """As `post`, but an answer that has begun and is still to be read; whoever has it closes it. A `Stop` ends it
        at any time.
        """
        content = _written(body)

        def begin(moment: float) -> Incoming:
            return Incoming(self._send("POST", path, content, moment, stopped), moment, stopped)

        return self._tried(begin, stopped)

    def exchange(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        stop: threading.Event | None = None,
    ) -> Incoming:
        """What the server answers to these very bytes, whatever its status, begun and still to be read; asked once.

        Raises:
            httpx.HTTPError, httpx.InvalidURL: it does not answer.
        """
        moment = time.monotonic() + self._deadline
        return Incoming(self._begin(method, path, content, headers, moment, stop), moment, stop)

    def _tried(self, attempt: Callable[[float], ResultT], stopped: threading.Event | None = None) -> ResultT:
        """What an attempt gives that is told the moment by which all has to end."""
        stopped, moment = stopped or threading.Event(), time.monotonic() + self._deadline
        for number in itertools.count(1):
            try:
                return attempt(moment)
            except Failure as e:
                e.attempts = number
                if not e.may_pass or number == self._attempts:
                    raise self._error(e) from e
                wait = pause(number, e.retry_after)
                if time.monotonic() + wait >= moment or stopped.wait(wait):
                    raise self._error(e) from e
        raise AssertionError

    def _json(self, method: str, path: str, content: bytes | None, moment: float) -> dict[str, Any]:
        moment = min(moment, time.monotonic() + self._timeout)
        response = self._send(method, path, content, moment)
        with self._failing(path), until(moment), closing(response):
            raw = whole(response)
        shown = repr(raw[:_SHOWN].decode(errors="replace"))
        try:
            answer = read_json(raw, nan=True)
        except ValueError as e:
            raise Failure(self.url, path, f"an answer that is no JSON: {shown}", 200) from e
        if not isinstance(answer, dict):
            raise Failure(self.url, path, f"an answer that is no JSON object: {shown}", 200)
        return answer

    def _begin(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Sequence[tuple[bytes, bytes]],
        moment: float,
        stop: threading.Event | None,
    ) -> httpx.Response:
        every = [*headers, *((name.encode(), value.encode()) for name, value in self._headers.items())]
        request = self._client.build_request(method, self.url + path, content=content, headers=every)
        with until(min(moment, time.monotonic() + self._timeout), stop):
            return self._client.send(request, stream=True)

    def _send(
        self, method: str, path: str, content: bytes | None, moment: float, stop: threading.Event | None = None
    ) -> httpx.Response:
        """A response of status 200 that has begun."""
        headers = [] if content is None else [(b"Content-Type", b"application/json")]
        moment = min(moment, time.monotonic() + self._timeout)
        with self._failing(path):
            response = self._begin(method, path, content, headers, moment, stop)
            if response.status_code == 200:
                return response
            with until(moment, stop), closing(response):
                text = beginning(response)
        status, (message, code) = response.status_code, _refusal(text or response.reason_phrase)
        wait = _seconds(response.headers.get("retry-after"))
        raise Failure(self.url, path, message, status, code, status in BUSY or status >= 500, wait)

    @contextmanager
    def _failing(self, path: str) -> Iterator[None]:
        """Makes a `Failure` of what goes wrong on the way; what is wrong with the answer itself does not pass."""
        try:
            yield
        except httpx.TransportError as e:
            raise Failure(self.url, path, f"{type(e).__name__}: {e}"[:_SHOWN]) from e
        except BodyError as e:
            raise Failure(self.url, path, str(e), 200, may_pass=False) from e
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, UnicodeError) as e:
            raise Failure(self.url, path, f"{type(e).__name__}: {e}"[:_SHOWN], may_pass=False) from e


def pause(attempt: int, retry_after: float) -> float:
    """Seconds after a failed attempt (1, 2, ...): they double up to 20, and are jittered, so that clients do not come
    back together; on top of what the server asks for, but a minute at most.
    """
    return min(retry_after + min(0.25 * 2.0 ** min(attempt - 1, 10), 20.0) + random.random(), LONGEST_PAUSE)


def _written(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as e:  # not JSON, or half a surrogate pair
        raise PromptError(f"The request cannot be written as JSON in UTF-8: {e}") from e


def _refusal(text: str) -> tuple[str, str | None]:
    """Message and code of an OpenAI-shaped error, else the beginning of the text."""
    try:
        answer = read_json(text)
        error = answer.get("error", answer)
        message, code = str(error.get("message", error)), error.get("code")
    except (ValueError, AttributeError):
        return text[:_SHOWN], None
    return message[:_SAID], code if isinstance(code, str) else None


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:  # a date: the pause is then ours
        return 0.0
