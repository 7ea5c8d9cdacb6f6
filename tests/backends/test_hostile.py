"""ServerRollouts against servers that misbehave: whatever they send, or do not, ends as an error that is documented."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nabla_agents import ConfigurationError, LanguageModel, RolloutError, Sampling, ServerRollouts
from nabla_agents.backends import body
from nabla_agents.models.rows import RolloutJob

from .completions_server import seeded
from .hostile import BAD_HTTP, HostileServer, answer

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(60)]

MODELS, COMPLETIONS = "/v1/models", "/v1/completions"
HUGE = 10**400


def choice(**fields: Any) -> dict[str, Any]:
    whole = {"index": 0, "text": "a", "finish_reason": "length", "token_ids": [0], "logprobs": {"token_logprobs": [-1]}}
    return {**whole, **fields}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr(body, "MOST_BYTES", 1 << 20)
    started = HostileServer()
    started.replies = {MODELS: answer({"data": [{"id": "tiny"}]}), COMPLETIONS: answer({"choices": [choice()]})}
    with started.running():
        yield started


def asked(server: HostileServer, model: LanguageModel) -> list[Any]:
    job = RolloutJob(model.prompt("ab"), (), Sampling(temperature=1.0), 1, torch.rand(1, generator=seeded(0)))
    options: dict[str, Any] = {"attempts": 1, "timeout_seconds": 0.4, "tolerance_nats": 1e6}
    with ServerRollouts(f"{server.url}/v1", model, **options) as rollouts:
        return rollouts.rollout([job])


def refused(server: HostileServer, model: LanguageModel) -> None:
    began = time.monotonic()
    with pytest.raises((RolloutError, ConfigurationError)) as raised:
        asked(server, model)
    assert time.monotonic() - began < 20
    assert len(str(raised.value)) < 3000


def test_a_server_that_behaves_is_believed(server: HostileServer, model: LanguageModel) -> None:
    assert asked(server, model)[0].completion_ids == (0,)


@pytest.mark.parametrize("path", [MODELS, COMPLETIONS])
@pytest.mark.parametrize("name", BAD_HTTP)
def test_bad_http_is_an_error_wherever_it_comes(
    server: HostileServer, model: LanguageModel, path: str, name: str
) -> None:
    server.replies[path] = BAD_HTTP[name]
    refused(server, model)


NONE: list[Any] = [None, 1, "x", [], {}, [1], {"a": [1]}]
WRONG: list[Any] = [
    *({"choices": choices} for choices in NONE),
    *({"choices": [each]} for each in NONE),
    *({"choices": [choice(token_ids=ids)]} for ids in [*NONE, [-1], [HUGE], [99], ["0"], [True], [0.0], [0] * 99]),
    *({"choices": [choice(logprobs=probs)]} for probs in NONE),
    *({"choices": [choice(logprobs={"token_logprobs": p})]} for p in [*NONE, [HUGE], [-HUGE], [float("nan")], [5.0]]),
    *({"choices": [choice(logprobs={"token_logprobs": p})]} for p in ["x", ["x"], [None], [float("-inf")], [-1, -1]]),
    *({"choices": [choice(finish_reason=reason)]} for reason in [*NONE, "abort"]),
    *({"choices": [choice(prompt_token_ids=ids)]} for ids in ([], [1], [HUGE])),
    {"choices": [choice(text="zzz")]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: str(value)[-60:])
def test_completions_of_another_shape(server: HostileServer, model: LanguageModel, wrong: Any) -> None:
    server.replies[COMPLETIONS] = answer(wrong)
    refused(server, model)


BESIDE: list[Any] = [
    {"choices": [choice(index=HUGE), choice(index="x"), choice(index=None)]},
    {"choices": [choice(text=None), None, 1, "x"]},
    *({"choices": [choice()], "usage": usage} for usage in NONE),
    *({"choices": [choice()], "usage": {"prompt_tokens_details": details}} for details in NONE),
    *(
        {"choices": [choice()], "usage": {"prompt_tokens_details": {"cached_tokens": cached}}}
        for cached in (-5, HUGE, "x", None, 1.5, float("nan"))
    ),
]


@pytest.mark.parametrize("beside", BESIDE, ids=lambda value: str(value)[-60:])
def test_what_stands_beside_a_whole_completion_is_not_believed(
    server: HostileServer, model: LanguageModel, beside: Any
) -> None:
    """Of the ledger, a server's figures can only lower what it read, and never below nothing."""
    server.replies[COMPLETIONS] = answer(beside)
    [rollout] = asked(server, model)
    assert rollout.completion_ids == (0,)
    assert 0 <= rollout.usage.prefill_tokens <= 100
    assert rollout.usage.flops >= 0


@pytest.mark.parametrize("models", [{"data": data} for data in [*NONE, [{"name": "tiny"}]]], ids=str)
def test_a_list_of_models_that_is_none(server: HostileServer, model: LanguageModel, models: Any) -> None:
    server.replies[MODELS] = answer(models)
    refused(server, model)


@pytest.mark.parametrize("length", [HUGE, -1, 0, "x", None, True, 1.5], ids=lambda value: str(value)[:9])
def test_a_context_length_that_is_none(server: HostileServer, model: LanguageModel, length: Any) -> None:
    server.replies[MODELS] = answer({"data": [{"id": "tiny", "max_model_len": length}]})
    assert asked(server, model)[0].completion_ids == (0,)
