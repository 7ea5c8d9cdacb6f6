"""Gate: what every request passes first and last: its key, its body's size and pace; its metrics, log line and span."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nabla_agents.result import Result
from nabla_agents.serve.errors import Refusal, refusal_of
from nabla_agents.serve.keys import ApiKey, find
from nabla_agents.serve.logs import failure, log
from nabla_agents.serve.metrics import Metrics
from nabla_agents.serve.service import Ask
from nabla_agents.serve.settings import ServeSettings, is_loopback
from nabla_agents.serve.streaming import ClientGone
from nabla_agents.serve.tracing import Tracing
from nabla_agents.types import Usage

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

    def note(self, request: Request, asks: Sequence[Ask]) -> None:
        """For the log line: what is asked."""
        facts, settings = request.state.facts, request.app.state.service.settings
        facts |= {"model": asks[0].served.model, "reward": asks[0].served.reward, "answers": len(asks)}
        if settings.log_prompts:
            facts["prompts"] = [ask.request.prompt.text for ask in asks]

    def note_results(self, request: Request, results: Sequence[Result]) -> None:
        """For the log line and the span: what it took."""
        spent = sum((result.usage for result in results), Usage())
        request.state.facts |= {
            "finish": [str(result.finish_reason) for result in results],
            "prompt_tokens": max(result.prompt_tokens for result in results),
            "completion_tokens": sum(len(result.token_ids) for result in results),
            "rollouts": spent.rollouts,
            "gradient_passes": spent.gradient_passes,
        }
        if request.app.state.service.settings.log_prompts:
            request.state.facts["texts"] = [result.text for result in results]


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, *, settings: ServeSettings, metrics: Metrics, tracing: Tracing) -> None:
        self._app, self._settings, self._metrics, self._tracing = app, settings, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, status, facts = time.perf_counter(), 0, dict[str, Any]()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            await send(message)

        with self._tracing.span(scope, headers) as span:
            try:
                caller = self._caller(scope, headers)
                facts["caller"] = caller.id
                scope.setdefault("state", {}).update(caller=caller, facts=facts, span=span)
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
                    response = JSONResponse(refusal.body, refusal.status, refusal.headers)
                    await response(scope, receive, sending)
            finally:
                code = _GONE if facts.pop("gone", False) else status
                self._report(scope, request_id, code, time.perf_counter() - started, facts)
                span.end(code, facts)

    def _report(self, scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._metrics.request(route, status, seconds)
        if status == _GONE:
            self._metrics.disconnect()
        error = facts.pop("error", None)
        if isinstance(error, BaseException) and refusal_of(error).status >= 500:
            log("failure", level=logging.ERROR, request_id=request_id, **failure(error))
        if route not in (*_OPEN, "/metrics"):
            log(
                "request",
                request_id=request_id,
                method=scope["method"],
                route=route,
                status=status,
                seconds=round(seconds, 6),
                **facts,
            )

    # ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _caller(self, scope: Scope, headers: dict[str, str]) -> Caller:
        """Who asks.

        Raises:
            Refusal: 401 for a missing, unknown or expired key; 403 where none is needed, but only from this machine.
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
        return Caller(key.id, key)

    # ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _with_body(self, headers: dict[str, str], receive: Receive) -> Receive:
        """`receive` with the whole body read already, within its size and time.

        Raises:
            Refusal: 413, 408.
            ClientGone: it left before its body was whole.
        """
        most = self._settings.max_body_bytes
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError as e:
            seconds = self._settings.body_seconds
            raise Refusal(408, f"The body did not arrive within {seconds:g} s.", code="timeout") from e
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return again


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is too large; at most {most} bytes are read.", code="request_too_large")


def _local(address: str) -> bool:
    return not address or is_loopback(address)  # no address: a socket of this machine, or an application beside us


def _local_host(host: str) -> bool:
    """Whether a Host header names this machine: a web page of elsewhere that was made to point here does not."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return is_loopback(name.lower()) or name == ""
