"""The one HTTP client: what is tried again, how long it waits, and what becomes of a failure."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nabla_agents import ConfigurationError, PromptError, RemoteError
from nabla_agents.backends.deadline import Stop
from nabla_agents.backends.http import Failure, HttpClient, pause

from .hostile import CHUNKED, HostileServer, silence

BODY = {"n": 1}
Answer = httpx.Response | Exception


class Wrong(RemoteError):
    """What the tests' clients make of a failure."""


def wrong(failure: Failure) -> Wrong:
    return Wrong(f"{failure.path} {failure.attempts}x {failure} {failure.code}")


class Answers(httpx.BaseTransport):
    """Answers one after another; keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.requests = list(answers), list[httpx.Request]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(*answers: Answer, attempts: int = 5, **options: Any) -> tuple[HttpClient, Answers]:
    transport = Answers(*answers)
    settings = {"error": wrong, "api_key": None, "timeout": 1.0, "transport": transport, **options}
    return HttpClient("http://host/v1/", attempts=attempts, **settings), transport


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "no", "code": "why"}}, headers=headers)


PASSING = {
    "refused": lambda: httpx.ConnectError("refused"),
    "slow": lambda: httpx.ReadTimeout("slow"),
    "reset": lambda: httpx.RemoteProtocolError("reset"),
    **{str(status): lambda status=status: refusal(status) for status in (408, 409, 425, 429, 500, 502, 503)},
    "no JSON": lambda: httpx.Response(200, text="<html>bad gateway</html>"),
    "no object": lambda: httpx.Response(200, json=[1]),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_tried_again_with_the_same_request(name: str, pauses: list[float]) -> None:
    http, there = client(PASSING[name](), PASSING[name](), httpx.Response(200, json={"a": 1}))
    assert http.post("/x", BODY) == {"a": 1}
    assert [(r.method, str(r.url), r.content) for r in there.requests] == [
        ("POST", "http://host/v1/x", b'{"n": 1}')
    ] * 3
    assert len(pauses) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_another_refusal_is_not_tried_again(status: int, pauses: list[float]) -> None:
    http, there = client(refusal(status))
    with pytest.raises(Wrong, match=f"/x 1x HTTP {status}: no why"):
        http.get("/x")
    assert (len(there.requests), pauses) == (1, [])


def test_attempts_end(pauses: list[float]) -> None:
    for answers, message in (
        (refusal(503), "HTTP 503: no why"),
        (httpx.ConnectError("gone"), "ConnectError: gone None"),
    ):
        http, _ = client(*[answers] * 3, attempts=3)
        with pytest.raises(Wrong, match=f"/x 3x {message}"):
            http.post("/x", BODY)
    assert len(pauses) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"message": "too long", "code": 400}', "too long None"),
        ('{"error": {"message": "too long", "code": "length"}}', "too long length"),
        ('{"error": "too long"}', '{"error": "too long"} None'),
        ("<html>", "<html> None"),
        ("", "Bad Request None"),
    ],
)
def test_what_a_refusal_says_is_in_the_error(text: str, message: str) -> None:
    http, _ = client(httpx.Response(400, text=text))
    with pytest.raises(Wrong) as raised:
        http.get("/x")
    assert str(raised.value) == f"/x 1x HTTP 400: {message}"


def test_a_stream_is_tried_again_until_it_begins_and_never_after(pauses: list[float]) -> None:
    class Breaking(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"begun"
            raise httpx.ReadError("reset")

    http, there = client(refusal(503), httpx.Response(200, stream=Breaking()))
    incoming = http.stream("/x", BODY)
    with pytest.raises(httpx.ReadError):
        list(incoming.lines())
    incoming.close()
    assert (len(there.requests), len(pauses)) == (2, 1)


def test_pauses_double_and_are_jittered_and_as_long_as_the_server_asks_up_to_a_minute() -> None:
    """Chance of 20 equal ones: none that matters."""
    rows = [[pause(attempt, 0.0) for _ in range(20)] for attempt in (1, 4, 30)]
    assert all(len(set(row)) > 1 for row in rows)
    assert max(rows[0]) <= 1.25
    assert min(rows[1]) >= 2.0
    assert max(rows[2]) <= 21.0
    assert 7.25 <= pause(1, 7.0) <= 8.25
    assert pause(1, 3600.0) == 60.0


@pytest.mark.parametrize(("header", "least"), [("7", 7.0), ("-5", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0)])
def test_retry_after_is_read_as_seconds(header: str, least: float, pauses: list[float]) -> None:
    http, _ = client(refusal(429, **{"retry-after": header}), httpx.Response(200, json={}))
    http.get("/x")
    [taken] = pauses
    assert least + 0.25 <= taken <= least + 1.25


def test_who_is_stopped_waits_no_longer() -> None:
    stopped = threading.Event()
    http, there = client(refusal(429, **{"retry-after": "60"}), refusal(503))
    threading.Timer(0.05, stopped.set).start()
    with pytest.raises(Wrong, match="/x 1x HTTP 429"):
        http.post("/x", BODY, stopped=stopped)
    assert len(there.requests) == 1


def test_the_key_goes_into_the_header_alone() -> None:
    http, there = client(refusal(401), api_key="secret-key")
    with pytest.raises(Wrong) as raised:
        http.get("/x")
    assert there.requests[0].headers["authorization"] == "Bearer secret-key"
    assert "secret-key" not in f"{raised.value} {raised.value.__cause__!r} {http!r}"


@pytest.mark.parametrize("value", [float("nan"), "\ud800", object()])
def test_what_json_has_not_is_refused_before_it_is_sent(value: Any) -> None:
    http, there = client()
    for send in (http.post, http.stream):
        with pytest.raises(PromptError, match="cannot be written as JSON"):
            send("/x", {"a": value})
    assert there.requests == []


def test_a_client_of_ones_own_is_used_and_closed() -> None:
    own = httpx.Client(transport=Answers(httpx.Response(200, json={"a": 1})))
    http, _ = client(client=own)
    assert http.get("/x") == {"a": 1}
    http.close()
    assert own.is_closed


@pytest.mark.untyped
@pytest.mark.parametrize("attempts", [0, True, 1.5])
def test_attempts_are_a_whole_number(attempts: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"attempts is {attempts}; expected a whole number of at least 1"):
        client(attempts=attempts)


@pytest.mark.parametrize("name", ["ServerRollouts", "RemoteEngine"])
def test_without_the_extra_the_error_names_it(name: str) -> None:
    code = f"import sys; sys.modules['httpx'] = None\ntry: from nabla_agents import {name}\n"
    code += "except Exception as e: print(type(e).__name__, e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigurationError A server is asked with httpx, which is not installed")
    assert "pip install 'nabla-agents[remote]'" in done.stdout


def test_cookies_are_not_kept() -> None:
    http, there = client(
        httpx.Response(200, json={}, headers={"Set-Cookie": "a=b; Path=/"}), httpx.Response(200, json={})
    )
    http.get("/x")
    http.get("/x")
    assert "cookie" not in there.requests[1].headers


@pytest.mark.enable_socket
def test_a_stop_ends_at_once_what_is_waited_for() -> None:
    server, stop = HostileServer(), Stop()
    server.replies = {"/headers": silence, "/body": lambda c: (c.sendall(CHUNKED), silence(c))[0]}
    with server.running():
        http = HttpClient(server.url, error=wrong, api_key=None, attempts=1, timeout=60.0)
        begun = http.exchange("GET", "/body", stop=stop)
        waits = [begun.whole, lambda: http.exchange("GET", "/headers", stop=stop)]
        for wait in waits[::-1]:
            timer, began = threading.Timer(0.1, stop.set), time.monotonic()
            timer.start()
            with pytest.raises(httpx.TransportError):
                wait()
            assert time.monotonic() - began < 10
            timer.join()
            stop.clear()
        begun.close()
        http.close()
