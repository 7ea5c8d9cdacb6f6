"""Deadline: a moment after which nothing more is read from a server, however slowly or endlessly it sends; and Stop,
by which another thread ends it before.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpcore
import httpx

_PIECE: Final = 1 << 14  # bytes of a request that are written at a time

_thread = threading.local()


class Stop(threading.Event):
    """Once it is set, by any thread, what is read or written within `until(moment, stop)` fails at once, and the server
    hears it: the connection is shut. To connect takes its time all the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._used: httpcore.NetworkStream | None = None

    def set(self) -> None:
        super().set()
        with self._lock:
            connection = None if self._used is None else self._used.get_extra_info("socket")
            if connection is not None:
                with suppress(OSError):  # gone already
                    connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def using(self, stream: httpcore.NetworkStream) -> Iterator[None]:
        """Within, the stream is what `set` shuts; after, another request may have it."""
        with self._lock:
            if self.is_set():
                raise httpcore.ReadError("stopped")
            self._used = stream
        try:
            yield
        finally:
            with self._lock:
                self._used = None


@contextmanager
def until(moment: float, stop: threading.Event | None = None) -> Iterator[None]:
    """Within, this thread's reads and writes of a limited client end at the moment (`time.monotonic`), or before, by
    the timeout of httpx, or where a `Stop` is set. A deadline around it stays.
    """
    before, stop_before = _of_thread(), getattr(_thread, "stop", None)
    _thread.moment, _thread.stop = min(before, moment), stop or stop_before
    try:
        yield
    finally:
        _thread.moment, _thread.stop = before, stop_before


def limit(client: httpx.Client) -> None:
    """Has a client keep to deadlines at every byte: timeouts of httpx begin anew with each one that comes, of a header
    too. Transports that are not httpx's own, such as those of tests, are left alone.
    """
    transports: dict[Any, Any] = getattr(client, "_mounts", {})
    for transport in (getattr(client, "_transport", None), *transports.values()):
        pool: Any = getattr(transport, "_pool", None)
        backend: Any = getattr(pool, "_network_backend", None)
        if isinstance(backend, httpcore.NetworkBackend) and not isinstance(backend, _Backend):
            pool._network_backend = _Backend(backend)


def check() -> None:
    """Raises httpx.ReadTimeout where this thread's moment is past, whatever the transport."""
    if time.monotonic() >= _of_thread():
        raise httpx.ReadTimeout("the whole took too long")


def _of_thread() -> float:
    return getattr(_thread, "moment", math.inf)


@contextmanager
def _stoppable(stream: httpcore.NetworkStream) -> Iterator[None]:
    stop = getattr(_thread, "stop", None)
    if not isinstance(stop, Stop):
        yield
        return
    with stop.using(stream):
        yield


def _left(timeout: float | None, error: type[Exception]) -> float | None:
    """The seconds that an operation may take: those of its timeout, and no more than are left."""
    left = _of_thread() - time.monotonic()
    if left <= 0:
        raise error("the whole took too long")
    return timeout if math.isinf(left) else left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_unix_socket(path, left, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _stoppable(self._inner):
            return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _PIECE):
            with _stoppable(self._inner):
                self._inner.write(buffer[at : at + _PIECE], _left(timeout, httpcore.WriteTimeout))

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
