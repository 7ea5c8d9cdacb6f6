"""An upstream server that does what the `model` of a request says, for attack.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

CHAT_ANSWER: Final = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "right",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "3 + 4 = 8\nAnswer: 8"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
}


class HostileUpstream(ThreadingHTTPServer):
    """`answering` counts the requests that it has not done with."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answering, self.lock = 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[HostileUpstream]:
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HostileUpstream

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.answering += 1
        try:
            ACTS[body["model"]](self)
        except OSError:  # whoever asked is gone
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.answering -= 1

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def never_end(self, kind: str, piece: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(piece)

    def be_silent(self) -> None:
        self.connection.settimeout(60)
        self.connection.recv(1)  # until it is closed
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


ACTS: Final[dict[str, Callable[[Handler], None]]] = {
    "right": lambda handler: handler.answer(json.dumps(CHAT_ANSWER).encode()),
    "nested": lambda handler: handler.answer(b'{"choices":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"),
    "endless": lambda handler: handler.never_end("application/json", b" " * 65_536),
    "endless events": lambda handler: handler.never_end("text/event-stream", b"data: {}\n\n" * 1000),
    "silent": Handler.be_silent,
}
