"""Engines, applications and a client of one, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from nabla_agents import ArithmeticSteps, Engine, Greedy
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.testing import scripted_model
from tests.serve.serving import asgi, says


@pytest.fixture(scope="session")
def tiny_engine() -> Engine:
    return Engine.tiny()


@pytest.fixture(scope="session")
def scripted_engine() -> Engine:
    return Engine(model=scripted_model(says), strategy=Greedy())


@pytest.fixture(scope="session")
def engines(tiny_engine: Engine, scripted_engine: Engine) -> dict[str, Engine]:
    return {"tiny": tiny_engine, "scripted": scripted_engine}


@pytest.fixture
def make_app(engines: dict[str, Engine]) -> Iterator[Callable[..., FastAPI]]:
    """An application with these settings; closed at the end."""
    made: list[FastAPI] = []

    def make(*, tracer_provider: Any = None, **settings: Any) -> FastAPI:
        rewards = {"arithmetic": ArithmeticSteps()}
        app = create_app(engines, ServeSettings(**settings), rewards=rewards, tracer_provider=tracer_provider)
        made.append(app)
        return app

    yield make
    for app in made:
        app.state.service.close()


@pytest.fixture
async def client(make_app: Callable[..., FastAPI]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with the default settings, without sockets."""
    async with asgi(make_app()) as found:
        yield found
