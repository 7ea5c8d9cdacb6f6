"""A server on a bare socket that answers each path with the bytes it is told, and what servers do wrong in HTTP."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any

Reply = bytes | Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\n"
JSON = OK + b"Content-Type: application/json\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def http(body: bytes | str, *, status: str = "200 OK", kind: str = "application/json", headers: str = "") -> bytes:
    body = body.encode() if isinstance(body, str) else body
    length = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{length}{headers}\r\n".encode() + body


def answer(value: Any) -> bytes:
    return http(json.dumps(value))


def stream(*events: Any, kind: str = "text/event-stream", done: bytes = b"data: [DONE]\n\n") -> bytes:
    """A stream of events, which ends with the connection; bytes are sent as they are."""
    written = b"".join(e if isinstance(e, bytes) else f"data: {json.dumps(e)}\n\n".encode() for e in events)
    return OK + f"Content-Type: {kind}\r\nConnection: close\r\n\r\n".encode() + written + done


def for_ever(piece: bytes, *, after: bytes = b"", pause: float = 0.0) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        connection.sendall(after)
        for _ in range(10_000_000):
            connection.sendall(piece)
            if pause:
                time.sleep(pause)

    return send


def silence(connection: socket.socket) -> None:
    connection.recv(1)  # until the client goes


class HostileServer:
    """Answers by the path; a path without an answer gets 404."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.url = ""
        self._connections: list[socket.socket] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with closing(socket.create_server(("127.0.0.1", 0))) as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            thread = threading.Thread(target=self._accept, args=(listening,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                for connection in self._connections:
                    connection.close()
                thread.join(10)

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError, IndexError), closing(connection):
            reader = connection.makefile("rb")
            path = reader.readline().split()[1].decode()
            length = 0
            while (line := reader.readline().strip().lower()) != b"":
                length = int(line.partition(b":")[2]) if line.startswith(b"content-length") else length
            reader.read(length)
            reply = self.replies.get(path, http("{}", status="404 Not Found"))
            if callable(reply):
                reply(connection)
            else:
                connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)


BOMB = gzip.compress(b"[" * (64 << 20))

BAD_HTTP: Mapping[str, Reply] = {
    "closed at once": b"",
    "closed in the status": b"HTTP/1.1 2",
    "closed in the headers": JSON,
    "closed in the body": JSON + b'Content-Length: 999\r\n\r\n{"a": 1',
    "closed in a chunk": CHUNKED + b"20\r\ndata: ",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a version that is none": b"HTTP/9.9 200 OK\r\n\r\n{}",
    "a status that is none": b"HTTP/1.1 99999 What\r\n\r\n{}",
    "bad chunks": CHUNKED + b"zz\r\n",
    "a negative length": JSON + b"Content-Length: -1\r\n\r\n{}",
    "two lengths": JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a header of bytes": JSON + b"X: \xff\xfe\x00\r\n\r\n{}",
    "nothing at all": silence,
    "nothing after the headers": lambda c: (c.sendall(JSON + b"Content-Length: 9\r\n\r\n"), silence(c))[0],
    "headers drop by drop": for_ever(b"X", after=JSON, pause=0.1),
    "endless headers": for_ever(b"X: y\r\n" * 1000, after=JSON),
    "endless interim answers": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
    "a body drop by drop": for_ever(b" ", after=JSON + b"Content-Length: 99999\r\n\r\n", pause=0.1),
    "an endless body": for_ever(b" " * 65536, after=JSON + b"\r\n"),
    "an endless line": for_ever(b"x" * 65536, after=OK + b"Content-Type: text/event-stream\r\n\r\ndata: "),
    "an endless refusal": for_ever(b"x" * 65536, after=b"HTTP/1.1 400 Bad\r\n\r\n"),
    "a gzip bomb": http(BOMB, headers="Content-Encoding: gzip\r\n"),
    "no gzip": http("{}", headers="Content-Encoding: gzip\r\n"),
    "another encoding": http("{}", headers="Content-Encoding: br\r\n"),
    "a redirect to itself": http("", status="302 Found", headers="Location: /v1/models\r\n"),
    "a redirect to nowhere": http("", status="307 Moved", headers="Location: http://[::\r\n"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a page": http("<html>", kind="text/html"),
    "a teapot": http("short", status="418 Teapot"),
    "a charset that is no text": http(b"zz", status="400 Bad", kind="text/plain; charset=hex"),
    "a refusal that is nested": http("[" * 100_000, status="400 Bad"),
    "a refusal of another shape": http('{"error": [{"code": {}}]}', status="400 Bad"),
    "a time to wait that is none": http("{}", status="503 Busy", headers="Retry-After: nan\r\n"),
    "no text": http(b"\xff\xfe\x00"),
    "UTF-16": http('{"a": 1}'.encode("utf-16")),
    "no JSON": http('{"a": '),
    "nothing": http(""),
    "null": answer(None),
    "a list": answer([1]),
    "a number": http("9" * 5000),
    "nested JSON": http('{"a":' * 100_000),
    "closed nested JSON": http('{"a":' * 900 + "1" + "}" * 900),
    "half a pair": http('{"id": "\\ud800", "text": "\\udfff", "data": [{"id": "\\ud800"}]}'),
}
"""What is wrong whatever was asked for."""
