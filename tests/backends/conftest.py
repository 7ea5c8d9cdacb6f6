"""A server on this machine's loopback, and the local engine that its rollouts are for."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nabla_agents import LanguageModel, ServerRollouts
from nabla_agents.testing import random_model

from .completions_server import CompletionsServer

WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")  # no word begins another


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return random_model(vocabulary=WORDS, context_length=64)


@pytest.fixture(scope="session")
def running(model: LanguageModel) -> Iterator[CompletionsServer]:
    server = CompletionsServer(model)
    with server.running():
        yield server


@pytest.fixture
def server(socket_enabled: None, running: CompletionsServer, model: LanguageModel) -> CompletionsServer:
    running.reset(model)
    return running


@pytest.fixture
def connect(server: CompletionsServer, model: LanguageModel, pauses: list[float]) -> Iterator[Callable[..., Any]]:
    """Makes rollouts on the server; pauses between attempts are left out."""
    made: list[ServerRollouts] = []

    def make(local: LanguageModel = model, **options: Any) -> ServerRollouts:
        made.append(ServerRollouts(server.url, local, **options))
        return made[-1]

    yield make
    for rollouts in made:
        rollouts.close()
