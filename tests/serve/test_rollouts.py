"""A server of this package samples for an engine elsewhere, by the protocol of vLLM's `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from nabla_agents import (
    VLLM,
    BestOfN,
    Budget,
    Engine,
    Greedy,
    Nabla,
    RolloutError,
    Sampling,
    ServerRollouts,
    Strategy,
)
from nabla_agents.backends.local import read
from nabla_agents.models.rows import RolloutJob
from nabla_agents.serve import ServeSettings, create_app
from tests.serve.serving import QUESTION, events, running

pytestmark = pytest.mark.enable_socket
SHORT = Sampling(max_tokens=64)


@pytest.fixture(scope="module")
def url(tiny_engine: Engine) -> Iterator[str]:
    """The embedded model on a server that answers by one rollout, and has no reward."""
    settings = ServeSettings(port=0)
    engine = Engine(model=Engine.tiny().model, strategy=Greedy())
    with running(create_app({"tiny": engine}, settings), settings) as server:
        yield f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture
def elsewhere(url: str, tiny_engine: Engine) -> Iterator[Engine]:
    """The embedded engine, whose rollouts the server samples."""
    with ServerRollouts(url, tiny_engine.model) as rollouts:
        yield Engine.tiny(model=tiny_engine.model, rollouts=rollouts)


@pytest.mark.parametrize("strategy", [Greedy(), Nabla(opening_temperature=0.0)], ids=lambda s: type(s).__name__)
def test_greedy_answers_are_those_of_the_local_engine(
    elsewhere: Engine, tiny_engine: Engine, strategy: Strategy
) -> None:
    options: dict[str, Any] = {"strategy": strategy, "sampling": Sampling(temperature=0.0, max_tokens=192)}
    here, there = (engine.generate(QUESTION, **options) for engine in (tiny_engine, elsewhere))
    assert there.token_ids == here.token_ids
    assert there.log_probs == pytest.approx(here.log_probs, abs=1e-3)
    assert [step.kind for step in there.trace] == [step.kind for step in here.trace]
    assert there.usage.rollouts == here.usage.rollouts
    assert there.truncated == here.truncated


def test_sampled_answers_are_the_models_own(elsewhere: Engine, tiny_engine: Engine) -> None:
    """Eight samples that are not all the same; log π of their tokens as the local model has it, at temperature 1."""
    sampling = Sampling(temperature=1.3, max_tokens=64)
    result = elsewhere.generate(QUESTION, seed=1, strategy=BestOfN(n=8), sampling=sampling)
    assert len({step.text for step in result.trace}) > 1
    prompt = tiny_engine.prompt(QUESTION)
    job = RolloutJob(prompt, (), sampling, 64, torch.rand(64))
    [(log_probs, _)] = read(tiny_engine.model, [(job, result.token_ids, 0)])
    assert result.log_probs == pytest.approx(log_probs.tolist(), abs=1e-3)
    again = elsewhere.generate(QUESTION, seed=1, strategy=BestOfN(n=8), sampling=sampling)
    assert [step.text for step in again.trace] == [step.text for step in result.trace]


def test_a_server_that_refines_is_asked_for_plain_samples_by_the_format(tiny_engine: Engine) -> None:
    settings, format = ServeSettings(port=0), VLLM.replace(body={**VLLM.body, "nabla": {"strategy": "greedy"}})
    with (
        running(create_app({"tiny": Engine.tiny()}, settings), settings) as server,
        ServerRollouts(f"http://127.0.0.1:{server.port}/v1", tiny_engine.model, format=format) as rollouts,
    ):
        elsewhere = Engine(model=tiny_engine.model, rollouts=rollouts, strategy=Greedy())
        here = Engine(model=tiny_engine.model, strategy=Greedy())
        assert elsewhere.generate(QUESTION, sampling=SHORT).text == here.generate(QUESTION, sampling=SHORT).text


def test_what_is_above_the_servers_limits_says_which(elsewhere: Engine) -> None:
    with pytest.raises(RolloutError, match=r"max_tokens is \d+; at most 4096 tokens are allowed"):
        elsewhere.generate(QUESTION, sampling=Sampling(max_tokens=5000))
    with pytest.raises(RolloutError, match="17 answers are asked for; at most 16 are allowed"):
        elsewhere.generate(QUESTION, strategy=BestOfN(n=17), budget=Budget(rollouts=17), sampling=SHORT)


# ── the protocol ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_come_with_one_log_probability_each(
    client: httpx.AsyncClient, tiny_engine: Engine, stream: bool
) -> None:
    prompts = [list(tiny_engine.prompt(question).ids) for question in (QUESTION, "1 + 1")]
    wish = {"temperature": 0, "logprobs": 0, "max_tokens": 64, "nabla": {"strategy": "greedy"}}
    body = {"model": "tiny", "prompt": prompts, "return_token_ids": True, "stream": stream, **wish}
    response = await client.post("/v1/completions", json=body)
    whole = [response.json()] if not stream else [piece for piece in events(response.text) if piece != "[DONE]"]
    choices = sorted((c for piece in whole for c in piece["choices"] if c["finish_reason"]), key=lambda c: c["index"])
    for choice, prompt in zip(choices, prompts, strict=True):
        assert choice["prompt_token_ids"] == prompt
        ids, logprobs = choice["token_ids"], choice["logprobs"]
        assert [len(logprobs[name]) for name in ("tokens", "token_logprobs", "text_offset")] == [len(ids)] * 3
        assert "".join(logprobs["tokens"]) == tiny_engine.model.tokenizer.decode(ids)
        assert (choice["finish_reason"] == "stop") == (ids[-1] in tiny_engine.model.eos_ids)
    assert choices[0]["token_ids"] == list(tiny_engine.generate(QUESTION, strategy=Greedy(), sampling=SHORT).token_ids)


async def test_token_ids_are_not_told_unless_asked(client: httpx.AsyncClient) -> None:
    [choice] = (await client.post("/v1/completions", json={"model": "scripted", "prompt": "Hi"})).json()["choices"]
    assert "token_ids" not in choice
    assert "prompt_token_ids" not in choice


async def test_what_vllm_has_and_this_server_has_not_is_refused(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "1 + 1", "max_tokens": 4}
    for fields, param in (
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"top_k": -2}, "top_k"),
    ):
        response = await client.post("/v1/completions", json={**body, **fields})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
