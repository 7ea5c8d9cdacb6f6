"""A server before another one: what passes, byte by byte and piece by piece; whatever the other one does, it ends."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from nabla_agents import Engine
from nabla_agents.backends import body as bodies
from nabla_agents.serve import Server, ServeSettings, create_app, digest, upstream
from tests.backends.hostile import BAD_HTTP, CHUNKED, HostileServer, for_ever
from tests.serve.other_server import OtherServer, Receive, Send, answering, begin, piece
from tests.serve.serving import events, refused, running, until

pytestmark = pytest.mark.enable_socket

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
KEY = "k" * 20


@contextmanager
def proxy(engine: Engine, url: str, **settings: Any) -> Iterator[tuple[Server, httpx.Client]]:
    """A server before the one at this URL, and a client of it."""
    read = ServeSettings(port=0, upstream=url, **settings)
    with ExitStack() as stack:
        server = stack.enter_context(running(create_app({"m": engine}, read), read))
        yield server, stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30))


@pytest.fixture
def other() -> Iterator[OtherServer]:
    started = OtherServer()
    with started.running():
        yield started


BODIES = [
    b'{ "model":"big",\t"messages" : [], "x_vendor": {"deep": [1e2, 0.10]}, "n": 3, "model": "twice" }\n',
    json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "d"}}]}]}
    ).encode(),
    b'{"tools": [{"function": {"parameters": {"properties": {"nabla": {}}}}}], "a": "\\ud83d\\ude00 \xc3\xa9"}',
    b'{"nabla": null, "stream": false}',
    b'{"nabla": {}, "broken": ',
    b"\xff\x00 no JSON",
    b"",
]


def test_what_is_not_to_be_refined_passes_byte_by_byte(scripted_engine: Engine, other: OtherServer) -> None:
    keys = [{"id": "a", "sha256": digest(KEY)}]
    sent = {
        "Authorization": f"Bearer {KEY}",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Cookie": "a=b",
        "X-Own": "2",
        **JSON,
    }
    reply = b'{"choices" : [ ],"usage":null }'
    other.act = answering(reply, x_odd="3", set_cookie="c=d", connection="X-Hop", x_hop="4", x_request_id="theirs")
    with proxy(scripted_engine, other.url, keys=keys, upstream_key="theirs") as (server, client):
        assert client.post(CHAT, content=BODIES[0], headers=JSON).status_code == 401
        assert other.got == []
        for route, body in itertools.product((CHAT, TEXTS), BODIES):
            response = client.post(f"{route}?v=1%20a", content=body, headers=sent)
            assert (response.status_code, response.content) == (200, reply)
            assert response.headers["x-odd"] == "3"
            assert not {"set-cookie", "x-hop"} & set(response.headers)
            assert response.headers["x-request-id"] != "theirs"
            got = other.got[-1]
            assert (got.method, got.path, got.body) == ("POST", f"{route}?v=1%20a", body)
        for path in ("/v1/models", "/v1/models/org/name%20x?full=1"):
            assert client.get(path, headers=sent).content == reply
            assert (other.got[-1].method, other.got[-1].path, other.got[-1].body) == ("GET", path, b"")
        until(lambda: not server.config.app.state.service.runs)
    for got in other.got:
        assert got.headers["authorization"] == "Bearer theirs"
        assert got.headers["x-own"] == "2"
        assert got.headers["content-type"] == "application/json"
        assert got.headers["accept-encoding"] == "identity"
        assert not {"cookie", "x-hop"} & set(got.headers)


def test_a_refusal_comes_back_as_it_is(scripted_engine: Engine, other: OtherServer) -> None:
    with proxy(scripted_engine, other.url) as (_, client):
        for status in (400, 401, 404, 418, 429, 500, 503):
            other.act = answering(b'{"error":  "so"}', status, retry_after="7")
            for body in ({"messages": []}, {"messages": [{"role": "user", "content": "a"}], "nabla": {}}):
                response = client.post(CHAT, json=body)
                assert (response.status_code, response.content) == (status, b'{"error":  "so"}')
                assert response.headers["retry-after"] == "7"
        assert len(other.got) == 14  # each was asked once


def test_what_leads_elsewhere_is_not_asked(scripted_engine: Engine, other: OtherServer) -> None:
    with proxy(scripted_engine, other.url) as (_, client):
        for name in ("%2e%2e/admin", "a/%2E%2E/%2e%2e/x", "a/%2e", "..%2fx"):
            refused(client.get(f"/v1/models/{name}"), 404, "model_not_found")
        refused(client.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain"}), 400, "invalid_body")
        assert client.post("/v1/embeddings", json={}).status_code == 404
    assert other.got == []


def test_a_stream_comes_piece_by_piece(scripted_engine: Engine, other: OtherServer) -> None:
    pieces, seen = [b'data: {"a":  1}\n', b"\ndata: ", b"[DONE]\n\n"], threading.Semaphore(0)

    async def act(receive: Receive, send: Send) -> None:
        await begin(send, content_type="text/event-stream; charset=utf-8", x_odd="3")
        for each in pieces:
            await piece(send, each)
            while not seen.acquire(blocking=False):  # until the client has it
                await asyncio.sleep(0.002)
        await piece(send, b"", more=False)

    other.act = act
    with (
        proxy(scripted_engine, other.url) as (_, client),
        client.stream("POST", CHAT, json={"stream": True}) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-odd"] == "3"
        for each, expected in zip(response.iter_raw(), pieces, strict=False):
            assert each == expected
            seen.release()


# ── the client leaves, the server ends ────────────────────────────────────────────────────────────────────────────────


class Hanging:
    """Sends a beginning, if there is one, and waits until the other side is gone."""

    def __init__(self, beginning: bytes | None) -> None:
        self._beginning, self.asked, self.left = beginning, 0, threading.Event()

    async def __call__(self, receive: Receive, send: Send) -> None:
        if self._beginning is not None:
            await begin(send, content_type="text/event-stream")
            await piece(send, self._beginning)
        self.asked += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


ASKED: list[tuple[dict[str, Any], bytes | None]] = [
    ({"messages": []}, None),
    ({"stream": True}, b"data: {}\n\n"),
    ({"messages": [{"role": "user", "content": "a"}], "model": "b", "nabla": {}}, None),
]


@pytest.mark.parametrize(("body", "beginning"), ASKED)
def test_a_client_that_leaves_ends_what_was_asked_for(
    scripted_engine: Engine, other: OtherServer, body: dict[str, Any], beginning: bytes | None
) -> None:
    other.act = hanging = Hanging(beginning)
    with proxy(scripted_engine, other.url) as (server, client):
        service = server.config.app.state.service
        with pytest.raises(httpx.ReadTimeout), client.stream("POST", CHAT, json=body, timeout=0.5) as response:
            response.read()
        assert hanging.left.wait(10)
        until(lambda: not service.runs)
        assert "nabla_disconnects_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize(("body", "beginning"), ASKED[:2])
def test_the_end_of_the_server_is_told(
    scripted_engine: Engine, other: OtherServer, body: dict[str, Any], beginning: bytes | None
) -> None:
    other.act = hanging = Hanging(beginning)
    with proxy(scripted_engine, other.url, shutdown_seconds=0.1) as (server, client):
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=body)))
        thread.start()
        until(lambda: hanging.asked == 1)
        server.should_exit = True
        thread.join(30)
        if beginning is None:
            refused(answers[0], 503, "shutting_down")
        else:
            assert events(answers[0].text)[-1]["error"]["code"] == "shutting_down"
        assert hanging.left.wait(10)


def test_more_than_it_is_asked_at_a_time_wait_or_are_refused(
    scripted_engine: Engine, other: OtherServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "_PLACES", 1)
    other.act = hanging = Hanging(None)
    with proxy(scripted_engine, other.url, max_queued=1) as (server, client):
        admission, answers = server.config.app.state.upstream.admission, list[int]()
        second = threading.Thread(target=lambda: answers.append(client.post(CHAT, json={}).status_code))
        with socket.create_connection(("127.0.0.1", server.port)) as first:
            first.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode())
            first.sendall(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            until(lambda: hanging.asked == 1)
            other.act = answering({})
            second.start()
            until(lambda: admission.waiting == 1)
            refused(client.post(CHAT, json={}), 429, "overloaded")
        second.join(30)
        assert answers == [200]  # who waited has the place of who left


# ── the other server misbehaves ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hostile(scripted_engine: Engine) -> Iterator[tuple[HostileServer, httpx.Client]]:
    server = HostileServer()
    with server.running(), proxy(scripted_engine, f"{server.url}/v1", upstream_seconds=0.4) as (_, client):
        yield server, client


PASS: dict[str, int] = {
    "a redirect to itself": 302,
    "no content": 204,
    "a page": 200,
    "a teapot": 418,
    "a charset that is no text": 400,
    "a refusal that is nested": 400,
    "a refusal of another shape": 400,
    "a time to wait that is none": 503,
    **dict.fromkeys(("no text", "UTF-16", "no JSON", "nothing", "null", "a list", "a number", "nested JSON"), 200),
    **dict.fromkeys(("closed nested JSON", "half a pair", "a version that is none"), 200),
}
"""What is HTTP passes, whatever it says."""


@pytest.mark.parametrize("name", BAD_HTTP)
def test_whatever_it_sends_ends(
    hostile: tuple[HostileServer, httpx.Client], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MOST_BYTES", 1 << 20)
    server, client = hostile
    server.replies = {CHAT: BAD_HTTP[name]}
    began = time.monotonic()
    with client.stream("POST", CHAT, json={"stream": True}) as response:
        told = b"".join(list(response.iter_raw())[-2:])
    draft = client.post(CHAT, json={"model": "b", "messages": [{"role": "user", "content": "a"}], "nabla": {}})
    assert time.monotonic() - began < 10
    streamed = response.headers.get("content-type") == "text/event-stream"
    if streamed:  # it had begun
        assert json.loads(told.rpartition(b"data: ")[2])["error"]["type"] == "server_error"
    else:
        assert response.status_code in ((PASS[name],) if name in PASS else (502, 504))
    if PASS.get(name, 200) == 200:
        error = draft.json()["error"]
        assert (draft.status_code, error["code"]) in ((502, "upstream_failed"), (504, "upstream_timeout"))
    else:
        assert draft.status_code == PASS[name]


def test_an_endless_stream_ends_in_little_memory(hostile: tuple[HostileServer, httpx.Client]) -> None:
    server, client = hostile
    server.replies = {CHAT: for_ever(b"a\r\ndata: {}\n\n\r\n", after=CHUNKED, pause=0.02)}
    with client.stream("POST", CHAT, json={}) as response:
        told = b"".join(response.iter_raw())
    assert response.status_code == 200
    assert events(told.decode())[-1]["error"]["code"] == "upstream_timeout"


def test_one_that_is_not_there_is_a_bad_gateway(scripted_engine: Engine) -> None:
    with proxy(scripted_engine, "http://127.0.0.1:9/v1") as (_, client):
        refused(client.get("/v1/models"), 502, "upstream_failed")
        assert client.get("/health").status_code == 200
