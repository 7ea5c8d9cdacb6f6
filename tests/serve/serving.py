"""What the tests of the server share: a script, clients, running servers, bodies and refusals."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from nabla_agents.serve import Server, ServeSettings

QUESTION = "Tom has 12 apples. He then has 3 times as many. He gives away 17. How many apples are left?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def says(prompt: str) -> str:
    """What the scripted model says: a call where tools are offered and none has answered, else what it was told."""
    if "<tools>" in prompt and "<tool_response>" not in prompt:
        return 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    if "fits this schema" in prompt:
        return '{"name": "Ada", "age": 36}'
    if "think" in prompt:
        return "<think>2 and 2</think>\nIt is 4."
    return "It rains in Oslo."


def asgi(app: FastAPI, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=options.pop("client", ("127.0.0.1", 1)))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60, **options)


@contextmanager
def running(app: FastAPI, settings: ServeSettings) -> Iterator[Server]:
    """The application under uvicorn on a free loopback port, on a thread; told to stop at the end."""
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.port > 0)
    yield server
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def until(reached: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits; fails where it is not reached."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.005)


def chat(content: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "seed": 0, **fields}


def refused(response: httpx.Response, status: int, code: str | None, *words: str) -> dict[str, Any]:
    """The error of a refusal, in OpenAI's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert all(word in error["message"] for word in words), error
    return error


def events(text: str) -> list[Any]:
    """The data of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
