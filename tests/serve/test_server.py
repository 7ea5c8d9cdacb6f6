"""A server on the network: clients that leave, that are slow, that are many; and its end."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from nabla_agents import Engine, Greedy
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.testing import scripted_model
from nabla_agents.types import Step
from tests.serve.serving import chat, events, refused, running, until

pytestmark = pytest.mark.enable_socket
CHAT = "/v1/chat/completions"


class Held:
    """A strategy that does steps of one rollout as long as it is held; it knows how many it has done."""

    rule = "objective"

    def __init__(self, steps: int = 1000) -> None:
        self.steps_done, self.released = 0, threading.Event()
        self._most = steps

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        for _ in range(self._most):
            async for step in Greedy().steps(search):
                self.steps_done += 1
                yield step
            if self.released.wait(0.01):
                return

    def select(self, pool: Any) -> Any:
        return pool.best()


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def make(held: Held) -> Callable[..., FastAPI]:
    engine = Engine(model=scripted_model(lambda prompt: "Yes."), strategy=Greedy())

    def made(**settings: Any) -> FastAPI:
        wide = {"max_rollouts": 10**6, **settings}
        return create_app({"m": engine}, ServeSettings(**wide), strategies={"held": held, "greedy": Greedy()})

    return made


BUDGET = {"budget": {"rollouts": 10**6}}
HELD = chat("Hi", model="m", nabla={"strategy": "held", **BUDGET})
QUICK = chat("Hi", model="m", nabla={"strategy": "greedy"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_search(make: Callable[..., FastAPI], held: Held, stream: bool) -> None:
    settings = ServeSettings(port=0)
    with running(make(), settings) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        service = server.config.app.state.service
        send(connection, {**HELD, "stream": stream})
        until(lambda: held.steps_done >= 2)
        connection.close()
        until(lambda: service.load == 0)
        done = held.steps_done
        with client_of(server.port) as client:
            assert client.post(CHAT, json=QUICK).status_code == 200
            assert "nabla_disconnects_total 1.0" in client.get("/metrics").text
        assert held.steps_done == done  # nothing was done after


def test_a_client_that_leaves_the_queue_is_forgotten(make: Callable[..., FastAPI], held: Held) -> None:
    with running(make(max_concurrent=1), ServeSettings(port=0)) as server:
        service = server.config.app.state.service
        with client_of(server.port) as client, socket.create_connection(("127.0.0.1", server.port)) as first:
            send(first, HELD)
            until(lambda: service.admission.running == 1)
            with socket.create_connection(("127.0.0.1", server.port)) as second:
                send(second, QUICK)
                until(lambda: service.admission.waiting == 1)
            until(lambda: service.admission.waiting == 0)
            held.released.set()
            assert client.post(CHAT, json=QUICK).status_code == 200


def test_more_than_can_wait_are_asked_to_come_back(make: Callable[..., FastAPI], held: Held) -> None:
    with running(make(max_concurrent=1, max_queued=1), ServeSettings(port=0)) as server:
        service = server.config.app.state.service
        answers: list[int] = []

        def ask(body: dict[str, Any]) -> None:
            with client_of(server.port) as client:
                answers.append(client.post(CHAT, json=body).status_code)

        threads = [threading.Thread(target=ask, args=(body,)) for body in (HELD, QUICK)]
        threads[0].start()
        until(lambda: service.admission.running == 1)
        threads[1].start()
        until(lambda: service.admission.waiting == 1)
        with client_of(server.port) as client:
            for stream in (False, True):
                response = client.post(CHAT, json={**QUICK, "stream": stream})
                refused(response, 429, "overloaded", "busy")
                assert int(response.headers["retry-after"]) >= 1
        held.released.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200, 200]  # who was let in is answered


def test_a_slow_head_is_not_waited_for(make: Callable[..., FastAPI]) -> None:
    """uvicorn itself would keep a connection for ever on which half a head came."""
    settings = ServeSettings(port=0, header_seconds=0.2)
    with running(make(), settings) as server:
        for sent in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(1000) == b""  # closed
        with client_of(server.port) as client:
            assert client.post(CHAT, json=QUICK).status_code == 200


def test_a_slow_body_is_not_waited_for(make: Callable[..., FastAPI]) -> None:
    with (
        running(make(body_seconds=0.2), ServeSettings(port=0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_is_too_long_does_not_hurt(make: Callable[..., FastAPI]) -> None:
    with running(make(), ServeSettings(port=0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(b"POST " + b"x" * 100_000)
            assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"")
        with client_of(server.port) as client:
            assert client.post(CHAT, json=QUICK).status_code == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9\r\n\r\n"])
def test_what_is_no_http_is_told_so(make: Callable[..., FastAPI], sent: bytes) -> None:
    with running(make(), ServeSettings(port=0)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(sent)
            head, _, body = b"".join(iter(lambda: connection.recv(1000), b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/json" in head
        error = json.loads(body)["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_http", None)
        assert "Expected HTTP" in error["message"]
        with client_of(server.port) as client:
            assert client.post(CHAT, json=QUICK).status_code == 200


def test_one_connection_too_many_is_asked_to_come_back(make: Callable[..., FastAPI]) -> None:
    with running(make(), ServeSettings(port=0, max_connections=2)) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address) as first, socket.create_connection(address):
            with client_of(server.port) as client:
                response = client.post(CHAT, json=QUICK)
                error = refused(response, 503, "too_many_connections", "2 connections")
                assert error["type"] == "server_error"
                assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")
            first.close()
            with client_of(server.port) as client:
                until(lambda: client.post(CHAT, json=QUICK).status_code == 200)


# ── its end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_runs_is_finished_before_the_end(make: Callable[..., FastAPI], held: Held) -> None:
    with running(make(), ServeSettings(port=0, shutdown_seconds=30)) as server, client_of(server.port) as client:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=HELD)))
        thread.start()
        until(lambda: held.steps_done >= 1)
        server.should_exit = True
        until(lambda: server.config.app.state.service.draining)
        held.released.set()
        thread.join(30)
        assert answers[0].status_code == 200
        assert answers[0].json()["choices"][0]["message"]["content"] == "Yes."


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_finished_in_time_is_told_so(make: Callable[..., FastAPI], held: Held, stream: bool) -> None:
    settings = ServeSettings(port=0, shutdown_seconds=0.1)
    with running(make(), settings) as server, client_of(server.port) as client:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json={**HELD, "stream": stream})))
        thread.start()
        until(lambda: held.steps_done >= 1)
        server.should_exit = True
        thread.join(30)
        if stream:
            *_, last = events(answers[0].text)
            assert last["error"]["code"] == "shutting_down"
        else:
            refused(answers[0], 503, "shutting_down")
            assert answers[0].headers["retry-after"] == "5"


# ── logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_log_lines_say_what_it_took_and_not_what_was_said(
    make: Callable[..., FastAPI], caplog: pytest.LogCaptureFixture
) -> None:
    body = chat("my secret", model="m", nabla={"strategy": "greedy"})
    with (
        caplog.at_level(logging.INFO, "nabla_agents.serve"),
        running(make(), ServeSettings(port=0)) as server,
        client_of(server.port) as client,
    ):
        client.post(CHAT, json=body, headers={"X-Request-Id": "abc-1"})
        until(lambda: any(record.message == "request" for record in caplog.records))
    [fields] = [record.fields for record in caplog.records if record.message == "request"]  # pyright: ignore
    assert (fields["request_id"], fields["status"], fields["model"], fields["rollouts"]) == ("abc-1", 200, "m", 1)
    assert "secret" not in json.dumps(fields, default=str)
    assert "Yes." not in json.dumps(fields, default=str)


def send(connection: socket.socket, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)


def client_of(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
