"""A served engine, and remote engines that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from nabla_agents import ArithmeticSteps, Engine, Greedy, RemoteEngine
from nabla_agents.serve import Server, ServeSettings, create_app
from nabla_agents.testing import scripted_model
from tests.serve.serving import running, says


@pytest.fixture(scope="module")
def local() -> dict[str, Engine]:
    return {"tiny": Engine.tiny(), "scripted": Engine(model=scripted_model(says), strategy=Greedy())}


@pytest.fixture(scope="module")
def server(local: dict[str, Engine]) -> Iterator[Server]:
    settings = ServeSettings(port=0, shutdown_seconds=5)
    with running(create_app(local, settings, rewards={"arithmetic": ArithmeticSteps()}), settings) as started:
        yield started


@pytest.fixture
def remote(server: Server) -> Iterator[Callable[..., RemoteEngine]]:
    """Engines of this server; closed at the end."""
    made: list[RemoteEngine] = []

    def make(model: str | None = "tiny", **options: Any) -> RemoteEngine:
        made.append(RemoteEngine(f"http://127.0.0.1:{server.port}/v1", model=model, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


class Faulty(httpx.BaseTransport):
    """A connection to the real server that first fails as it is told; counts what was sent."""

    def __init__(self, *faults: httpx.Response | Exception) -> None:
        self.faults, self.sent = list(faults), list[str]()
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request.url.path)
        if self.faults and request.method == "POST":
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()
