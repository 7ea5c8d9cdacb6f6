"""Middleware: what all requests pass first and last: their key, their body's size and pace; metrics, log line, span."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nabla_agents.serve.errors import ClientGone, Refusal, refusal_of
from nabla_agents.serve.keys import ApiKey, find
from nabla_agents.serve.rates import Rates
from nabla_agents.serve.settings import ServeSettings, is_loopback
from nabla_agents.serve.telemetry import Metrics, Tracing, failure, log

_OPEN: Final = ("/health", "/ready")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_GONE: Final = 499  # as nginx logs a client that left


@dataclass(frozen=True)
class Caller:
    """Who asks: a key, or where the request comes from."""

    id: str
    key: ApiKey | None

    @staticmethod
    def of(request: Request) -> Caller:
        return request.state.caller


class Middleware:
    """Around all routes. `request.state.facts` collects what the log line and the span of a request say."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, metrics: Metrics, tracing: Tracing) -> None:
        self._app, self._settings, self._metrics, self._tracing = app, settings, metrics, tracing
        self._rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        presented = headers.get("x-request-id", "")
        request_id = presented if _REQUEST_ID.fullmatch(presented) else uuid.uuid4().hex
        started, status, facts = time.perf_counter(), 0, dict[str, Any]()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        with self._tracing.span(scope, headers, facts):
            try:
                caller = self._caller(scope, headers)
                facts["caller"] = caller.id
                scope.setdefault("state", {}).update(caller=caller, facts=facts)
                await self._app(scope, await self._with_body(headers, receive), sending)
            except ClientGone:
                facts["gone"] = True
            except asyncio.CancelledError:
                facts["gone"] = True
                raise
            except Exception as e:
                if not isinstance(e, Refusal):
                    facts["error"] = e
                if not status:
                    refusal = refusal_of(e)
                    await JSONResponse(refusal.body, refusal.status, refusal.headers)(scope, receive, sending)
            finally:
                facts["status"] = _GONE if facts.pop("gone", False) else status
                self._report(scope, request_id, time.perf_counter() - started, facts)

    def _report(self, scope: Scope, request_id: str, seconds: float, facts: dict[str, Any]) -> None:
        route, status = getattr(scope.get("route"), "path", "unknown"), facts["status"]
        self._metrics.request(route, status, seconds, gone=status == _GONE)
        error = facts.pop("error", None)
        if error is not None and refusal_of(error).status >= 500:
            log("failure", level=logging.ERROR, request_id=request_id, **failure(error))
        if route not in (*_OPEN, "/metrics"):
            about = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
            log("request", request_id=request_id, **{**about, **facts})

    def _caller(self, scope: Scope, headers: Headers) -> Caller:
        """Who asks.

        Raises:
            Refusal: 401 for a missing, unknown or expired key; 403 where none is needed, but only from this machine;
                429 where the key's rate is exceeded.
        """
        settings, path = self._settings, scope["path"]
        address = scope["client"][0] if scope.get("client") else ""
        nobody = Caller(f"address:{address or 'local'}", None)
        if path in _OPEN or (path == "/metrics" and settings.metrics_public):
            return nobody
        if not settings.keys:
            if not settings.anonymous and not (_local(address) and _local_host(headers.get("host", ""))):
                raise Refusal(403, "Without API keys this server answers its own machine only.", code="no_keys")
            return nobody
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise Refusal(401, "Give an API key: 'Authorization: Bearer KEY'.", code="invalid_api_key")
        key = find(settings.keys, presented.strip())
        if key is None:
            raise Refusal(401, "The API key is unknown here.", code="invalid_api_key")
        if key.expired():
            raise Refusal(401, f"The API key {key.id!r} has expired. Ask for another one.", code="expired_api_key")
        self._rates.count(key)
        return Caller(key.id, key)

    async def _with_body(self, headers: Headers, receive: Receive) -> Receive:
        """`receive` with the whole body read already, within its size and time.

        Raises:
            Refusal: 413, 408.
            ClientGone: it left before its body was whole.
        """
        most, seconds = self._settings.max_body_bytes, self._settings.body_seconds
        too_large = Refusal(413, f"The body is too large; at most {most} bytes are read.", code="request_too_large")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_large
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError as e:
            raise Refusal(408, f"The body did not arrive within {seconds:g} s.", code="timeout") from e
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return again


def _local(address: str) -> bool:
    return not address or is_loopback(address)  # no address: a socket of this machine, or an application beside us


def _local_host(host: str) -> bool:
    """Whether a Host header names this machine: a web page of elsewhere that was made to point here does not."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return is_loopback(name.lower()) or name == ""
