"""What one request can cost: it is counted first, read off the event loop, and given up where it takes long."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from nabla_agents import Engine, Greedy
from nabla_agents.models.constraint import Compiler
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.serve.readers import Readers
from nabla_agents.serve.schemas import misplaced
from nabla_agents.testing import scripted_model
from tests.serve.serving import WEATHER, asgi, chat, refused, running, until

CHAT, TEXTS, TOKENS = "/v1/chat/completions", "/v1/completions", "/v1/nabla/tokens"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tokenized, rendered and compiled."""
    calls: list[str] = []
    for kind, name in ((Tokenizer, "encode"), (LanguageModel, "prompt"), (Compiler, "start")):
        original: Any = getattr(kind, name)

        def counted(self: Any, *a: Any, name: str = name, original: Any = original, **o: Any) -> Any:
            calls.append(name)
            return original(self, *a, **o)

        monkeypatch.setattr(kind, name, counted)
    return calls


def answers_in(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


def nested(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("route", "fields", "code"),
    [
        (TEXTS, {"prompt": ["a"] * 100_000}, "invalid_value"),
        (TEXTS, {"prompt": [[1]] * 17}, "invalid_value"),
        (TEXTS, {"prompt": [1] * 100_000}, "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 20_000}, "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}], "n": 17}, "invalid_value"),
        (CHAT, chat(**answers_in({"enum": [f"value {i}" for i in range(20_000)]})), "schema_too_large"),
        (CHAT, chat(**answers_in({"description": "x" * 100_000})), "schema_too_large"),
        (CHAT, chat(**answers_in(nested(70))), "schema_too_large"),
        (CHAT, chat(tools=[WEATHER] * 1500), "schema_too_large"),
        (TOKENS, {"ids": [1] * 100_000}, "invalid_value"),
    ],
)
async def test_what_is_too_much_is_counted_and_not_read(
    client: httpx.AsyncClient, read: list[str], route: str, fields: dict[str, Any], code: str
) -> None:
    refused(await client.post(route, json={**fields, "model": "tiny"}), 400, code)
    assert read == []


async def test_a_grammar_is_compiled_after_its_prompt_is_known_to_fit(
    client: httpx.AsyncClient, read: list[str]
) -> None:
    body = chat("word " * 20_000, **answers_in({"type": "string"}))
    refused(await client.post(CHAT, json=body), 400, "context_length_exceeded")
    assert "prompt" in read
    assert "start" not in read


@pytest.mark.parametrize(
    "broken",
    [
        {"$schema": "http://json-schema.org/draft-04/schema#", "enum": [{"a": i} for i in range(2000)], "type": "x"},
        {"required": [{"a": i} for i in range(2000)], "type": "x"},
        {"allOf": [{"type": ["x", i]} for i in range(1500)]},
    ],
)
def test_where_a_schema_is_wrong_is_found_soon_or_not_at_all(broken: dict[str, Any]) -> None:
    """Unsortable items are not compared in pairs: two million of them, at microseconds each."""
    began = time.process_time()
    misplaced(broken)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 300_000},
        {"messages": [{"role": "q", "content": [1]}] * 30_000},
        {f"unknown {i}": 1 for i in range(50_000)},
        {"metadata": {f"k{i}": 1 for i in range(50_000)}},
        {"nabla": {f"k{i}": 1 for i in range(50_000)}},
        {"x" * 500_000: 1},
    ],
)
async def test_an_error_costs_little_however_much_is_wrong(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    """One thing that is wrong is found, and told in few words; 300,000 took seconds of the event loop."""
    began = time.process_time()
    response = await client.post(CHAT, json={**chat(), **fields})
    assert response.status_code == 400
    assert len(response.content) < 10_000
    assert time.process_time() - began < 2


async def test_what_takes_long_is_given_up_and_holds_up_no_other_caller() -> None:
    readers, hold = Readers(seconds=0.1), threading.Event()
    slow = [asyncio.create_task(readers.read("many", lambda: hold.wait(30))) for _ in range(20)]
    await asyncio.sleep(0.02)
    assert await readers.read("few", lambda: 5) == 5  # while "many" has a thread, and a queue
    done, waiting = await asyncio.wait(slow, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
    [error] = [task.exception() for task in done]
    assert getattr(error, "code", None) == "too_complex"
    assert len(waiting) == 19  # its turn ends with the thread's work
    hold.set()
    assert all(await asyncio.gather(*waiting))
    until(lambda: not readers.busy)
    readers.close()


# ── over a connection ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make() -> Callable[..., FastAPI]:
    engine = Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())
    return lambda **settings: create_app({"m": engine}, ServeSettings(**settings))


@pytest.mark.enable_socket
def test_who_does_not_read_is_dropped(make: Callable[..., FastAPI]) -> None:
    """Megabytes are written to a client that reads nothing; uvicorn itself would wait for it for ever."""
    app = make()
    app.add_api_route("/large", lambda: PlainTextResponse("x" * 20_000_000))
    with running(app, ServeSettings(port=0, write_seconds=0.3)) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: len(server.server_state.connections) == 1)
        until(lambda: len(server.server_state.connections) == 0, 30)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert client.get("/health").status_code == 200


async def test_a_stop_string_has_a_largest_length(make: Callable[..., FastAPI]) -> None:
    app = make()
    async with asgi(app) as client:
        body = chat("Hi", model="m", stop=["x" * 1000])
        refused(await client.post(CHAT, json=body), 400, "invalid_value")
    app.state.service.close()
