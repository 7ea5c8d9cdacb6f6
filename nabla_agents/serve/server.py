"""serve: the application under uvicorn, with limits on slow clients and an orderly end."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import socket
import sys
from typing import Any, Final

import h11
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from nabla_agents.errors import ConfigurationError
from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.service import CANCEL_SECONDS, Service
from nabla_agents.serve.settings import ServeSettings
from nabla_agents.serve.telemetry import configure, log

_GRACE: Final = round(CANCEL_SECONDS) + 1  # seconds after the deadline, for connections


class Server(uvicorn.Server):
    """uvicorn, which at its end refuses new requests, lets running ones finish, and cancels them at the deadline.

    With `owns_process` the process ends then, also where a thread hangs that nothing can stop.
    """

    def __init__(self, app: FastAPI, settings: ServeSettings, *, owns_process: bool = False) -> None:
        self._owns_process = owns_process
        self._service: Service = app.state.service
        self._settings = settings
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=_bounded(settings.header_seconds, settings.write_seconds, settings.max_connections),
                ws="none",
                loop="auto",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=round(settings.shutdown_seconds) + _GRACE,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )

    @property
    def port(self) -> int:
        """Where it listens, which with port 0 the system chose; 0 before it does."""
        addresses = [s.getsockname() for server in self.servers for s in server.sockets] if self.started else []
        return next((address[1] for address in addresses), 0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log("listening", host=self._settings.host, port=self.port, models=self._service.models)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log("draining", answers=self._service.load)
        if self._owns_process:  # by a thread of C, which waits for no one; it prints where each thread hangs
            last = self._settings.shutdown_seconds + 2 * _GRACE
            faulthandler.dump_traceback_later(last, exit=True, file=sys.__stderr__ or sys.stderr)
        draining = asyncio.create_task(self._service.drain(self._settings.shutdown_seconds))
        await super().shutdown(sockets)
        await draining
        log("stopped")


def serve(app: FastAPI, settings: ServeSettings) -> None:
    """Serves until it is told to stop: SIGTERM, or Ctrl-C; a second Ctrl-C does not wait for answers.

    Raises:
        ConfigurationError: it cannot listen there.
    """
    configure(settings.log_level)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as e:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {settings.host} port {settings.port}: {e.strerror or e}. Choose another host or port."
        ) from e
    with listener:
        try:
            Server(app, settings, owns_process=True).run([listener])
        finally:
            if not app.state.service.idle:  # a thread hangs, and the interpreter would wait for it
                os._exit(1)
            faulthandler.cancel_dump_traceback_later()


def _bounded(header_seconds: float, write_seconds: float, max_connections: int) -> type[H11Protocol]:
    """uvicorn's protocol, with so long for a request's head to arrive and for what was written to be read, and for so
    many connections at once.

    uvicorn itself waits for the rest of a head, and for a reader, for ever, and answers in plain text what is no HTTP,
    or one too many.
    """
    message = f"{max_connections} connections are open, and no more are served at once."
    full = Refusal(503, message, code="too_many_connections", retry_after=1.0)
    refuse = JSONResponse(full.body, full.status, {**full.headers, "Connection": "close"})

    class Bounded(H11Protocol):
        """Closes a connection on which no head was completed in time, or nothing read; refuses what comes by one too
        many.
        """

        _deadline: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None
        _reaping: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._reap(was_closing=False)
            if len(self.connections) > max_connections:
                self.app = refuse
            self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:  # the next head has begun, or nothing has
                self._arm()
            else:
                self._disarm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self.resume_writing()
            if self._reaping is not None:
                self._reaping.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._reading is None:
                self._reading = self.loop.call_later(write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._disarm()

        def send_400_response(self, msg: str) -> None:
            refusal = Refusal(400, f"{msg} Expected HTTP/1.1, and TLS ended before it comes here.", code="invalid_http")
            body = json.dumps(refusal.body).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _reap(self, *, was_closing: bool) -> None:
            """A connection that closes has its last bytes read, or is dropped."""
            if was_closing:
                self.transport.abort()
                return
            closing = self.transport.is_closing()
            self._reaping = self.loop.call_later(write_seconds, lambda: self._reap(was_closing=closing))

        def _arm(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(header_seconds, self._close)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self._deadline = None
            if not self.transport.is_closing():
                self.transport.close()

    return Bounded
