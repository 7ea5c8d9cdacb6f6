"""The server that a proxy of the tests passes requests on to: it keeps what it gets, and does what it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]
Act = Callable[[Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Got:
    """A request as it came: method, path with query, headers in lower case, body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class OtherServer:
    """Answers every request by `act`; `got` are those that came."""

    def __init__(self) -> None:
        self.got: list[Got] = []
        self.act: Act = answering({})
        self.url = ""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.got.append(Got(scope["method"], scope["raw_path"].decode() + query, headers, body))
        await self.act(receive, send)

    @contextmanager
    def running(self) -> Iterator[None]:
        config = uvicorn.Config(
            self, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(20)


async def begin(send: Send, status: int = 200, **headers: str) -> None:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def piece(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def answering(value: Any, status: int = 200, **headers: str) -> Act:
    """With these bytes, or this value as JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()

    async def act(receive: Receive, send: Send) -> None:
        await begin(send, status, **{"content_type": "application/json", **headers})
        await piece(send, body, more=False)

    return act


def says(text: str | None, *, reason: str = "stop", **message: Any) -> dict[str, Any]:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
    usage = {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "big", "choices": [choice], "usage": usage}
