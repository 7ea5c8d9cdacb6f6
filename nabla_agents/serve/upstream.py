"""Upstream: another server that answers in OpenAI's form; what it says is passed on as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import httpx
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from nabla_agents.backends.body import BodyError, Incoming
from nabla_agents.backends.deadline import Stop
from nabla_agents.backends.http import HttpClient
from nabla_agents.errors import RemoteError
from nabla_agents.serve.errors import Refusal, shutting_down
from nabla_agents.serve.middleware import Caller
from nabla_agents.serve.responses import Stream, connected
from nabla_agents.serve.service import Service, admission_of
from nabla_agents.serve.settings import ServeSettings

ResultT = TypeVar("ResultT")
Headers = Iterable[tuple[bytes, bytes]]

_PLACES: Final = 100  # requests at a time, each with a thread: as many as httpx has connections
_HOP: Final = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_OURS: Final = {
    *_HOP,
    "accept-encoding",
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "host",
    "proxy-authorization",
}
_THEIRS: Final = {*_HOP, "content-length", "date", "proxy-authenticate", "set-cookie", "x-request-id"}


class Upstream:
    """The other server: its client, the threads that ask it, and whose turn it is."""

    def __init__(self, settings: ServeSettings) -> None:
        key, seconds = settings.upstream_key, settings.upstream_seconds
        self.client = HttpClient(
            settings.upstream or "",
            error=lambda failure: RemoteError(str(failure)),
            api_key=None if key is None else key.get_secret_value(),
            attempts=1,
            timeout=seconds,
            deadline=seconds,
        )
        self.admission = admission_of(settings, _PLACES)
        self.threads = ThreadPoolExecutor(_PLACES, "nabla-upstream")

    def close(self) -> None:
        self.threads.shutdown(wait=False)
        self.client.close()


class Exchange:
    """A request to the upstream, from its turn to the last byte; whoever has it cancels it in the end.

    Raises:
        Refusal: 429, or 503 while the server shuts down.
    """

    def __init__(self, http: HttpRequest, path: str, content: bytes | None) -> None:
        self._service, self._upstream = Service.of(http), http.app.state.upstream
        if self._service.draining:
            raise shutting_down()
        query = http.scope["query_string"].decode("latin-1")
        self._stop, self._lock, self._incoming = Stop(), threading.Lock(), None
        self._ask: Callable[[], Incoming] = partial(
            self._upstream.client.exchange,
            http.method,
            f"{path}?{query}" if query else path,
            content=content,
            headers=_without(http.scope["headers"], _OURS),
            stop=self._stop,
        )
        caller, self._loop = Caller.of(http), asyncio.get_running_loop()
        [self._ticket] = self._upstream.admission.enter(caller.id, 1, None if content is None else caller.key)
        self.left: asyncio.Future[None] = self._loop.create_future()
        self._service.runs.add(self)

    async def begin(self) -> Incoming:
        """The answer, of whatever status, begun.

        Raises:
            Refusal: 502 or 504, as all that reads on; 503 where the server's shutdown ends it.
        """
        await self._ticket.granted

        def begin() -> Incoming:
            self._incoming = self._ask()
            return self._incoming

        return await self.read(begin)

    async def read(self, function: Callable[[], ResultT]) -> ResultT:
        """What the function reads, off the event loop and one at a time."""

        def alone() -> ResultT:
            with self._lock, _refusing(self._stop):
                return function()

        return await self._loop.run_in_executor(self._upstream.threads, alone)

    async def chunks(self) -> AsyncIterator[bytes]:
        assert self._incoming is not None
        chunks = self._incoming.chunks()
        while (chunk := await self.read(lambda: next(chunks, None))) is not None:
            yield chunk

    def cancel(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        if self._ticket.granted.done():
            self._loop.run_in_executor(self._upstream.threads, self._close).add_done_callback(self._leave)
            return
        self._ticket.granted.set_exception(shutting_down())
        self._ticket.granted.exception()  # seen: whoever waits for it may be gone
        self._leave()

    def _close(self) -> None:
        with self._lock:  # not before what is read has heard that it is stopped
            if self._incoming is not None:
                self._incoming.close()

    def _leave(self, _: object = None) -> None:
        self._upstream.admission.leave(self._ticket)
        self._service.runs.discard(self)
        self.left.set_result(None)


async def passed(http: HttpRequest, path: str, content: bytes | None, *, whole: bool = False) -> Response:
    """The upstream's answer to these bytes; events as they come, unless it has to be whole."""
    exchange = Exchange(http, path, content)
    async with connected(http, [exchange]):
        incoming = await exchange.begin()
        http.state.facts["upstream"] = incoming.status
        headers = _without(incoming.headers, _THEIRS)
        if incoming.content_type == "text/event-stream" and not whole:
            response = Stream(http, [exchange], exchange.chunks(), status_code=incoming.status)
            response.raw_headers = headers
            return response
        body = await exchange.read(incoming.whole)
    exchange.cancel()
    response = Response(body, incoming.status)
    length = [] if incoming.status in (204, 304) else [(b"content-length", str(len(body)).encode())]
    response.raw_headers = [*headers, *length]
    return response


@contextmanager
def _refusing(stop: Stop) -> Iterator[None]:
    """What goes wrong on the way, as what a client is told."""
    try:
        yield
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, BodyError, OSError, ValueError) as e:
        if stop.is_set():
            raise shutting_down() from e
        if isinstance(e, httpx.TimeoutException):
            raise Refusal(504, "The upstream server did not answer in time.", code="upstream_timeout") from e
        raise failed("cannot be reached, or broke off") from e


def failed(how: str) -> Refusal:
    return Refusal(502, f"The upstream server {how}.", code="upstream_failed")


def _without(headers: Headers, names: set[str]) -> list[tuple[bytes, bytes]]:
    """Those that are for both ends: not these, nor what `Connection` names."""
    named = b",".join(value for name, value in headers if name.lower() == b"connection").decode("latin-1").lower()
    names = names | {name.strip() for name in named.split(",")}
    return [(name, value) for name, value in headers if name.decode("latin-1").lower() not in names]
