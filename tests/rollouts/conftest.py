"""A server on this machine's loopback, and the local engine that its rollouts are for."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nabla_agents import LanguageModel
from nabla_agents.rollouts import ServerRollouts
from nabla_agents.testing import random_model

from .completions_server import CompletionsServer

WORDS = ("a", "b", "cd", "efg", "h", "i", "\n")  # no word begins another


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return random_model(vocabulary=WORDS, context_length=64)


@pytest.fixture
def server(model: LanguageModel, socket_enabled: None) -> Iterator[CompletionsServer]:
    served = CompletionsServer(model)
    with served.running() as url:
        served.url = url  # type: ignore[attr-defined]
        yield served


@pytest.fixture
def connect(server: CompletionsServer, model: LanguageModel) -> Iterator[Callable[..., ServerRollouts]]:
    """Makes rollouts on the server; pauses between attempts are left out."""
    made: list[ServerRollouts] = []

    def make(local: LanguageModel = model, **options: Any) -> ServerRollouts:
        rollouts = ServerRollouts(server.url, local, **options)  # type: ignore[attr-defined]
        rollouts._completions._jittered = lambda _: 0.0
        made.append(rollouts)
        return rollouts

    yield make
    for each in made:
        each.close()
