"""What an application answers, asked within the process."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from nabla_agents import BestOfN, Budget, ConfigurationError, Engine, Greedy, Sampling
from nabla_agents.serve import create_app
from tests.serve.serving import QUESTION, asgi, chat, events


async def test_an_answer_is_what_the_engine_says_with_the_same_seed(
    client: httpx.AsyncClient, tiny_engine: Engine
) -> None:
    response = await client.post("/v1/chat/completions", json=chat(seed=3))
    assert response.status_code == 200
    got, result = response.json(), tiny_engine.generate(QUESTION, seed=3)
    [choice] = got["choices"]
    assert choice["message"] == {"role": "assistant", "content": result.text, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert got["usage"]["prompt_tokens"] == result.prompt_tokens
    assert got["usage"]["completion_tokens"] == len(result.token_ids)
    assert choice["nabla"]["usage"]["rollouts"] == result.usage.rollouts
    assert choice["nabla"]["usage"]["flops"] == result.usage.flops
    assert choice["nabla"]["seed"] == 3
    assert got["nabla"]["usage"]["rollouts"] == result.usage.rollouts


async def test_a_stream_adds_up_to_the_whole_answer(client: httpx.AsyncClient) -> None:
    whole = (await client.post("/v1/chat/completions", json=chat(seed=1))).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = await client.post("/v1/chat/completions", json=chat(seed=1, **options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    *pieces, last = chunks
    text = "".join(c["delta"].get("content", "") for piece in pieces for c in piece["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}


async def test_concurrent_requests_get_their_own_answers(client: httpx.AsyncClient, tiny_engine: Engine) -> None:
    """As many as run together, each with another question: every answer is that of its question alone."""
    questions = [f"Ann has {a} pears. She buys {b}. How many pears are there?" for a, b in [(3, 4), (10, 5), (7, 20)]]
    wish = {"nabla": {"strategy": "best-of-n", "budget": {"rollouts": 2}}}
    bodies = [chat(question, seed=i, n=2, max_tokens=32, **wish) for i, question in enumerate(questions)]
    responses = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))
    options: dict[str, Any] = {"strategy": BestOfN(), "budget": Budget(rollouts=2), "sampling": Sampling(max_tokens=32)}
    for i, (question, response) in enumerate(zip(questions, responses, strict=True)):
        texts = [choice["message"]["content"] for choice in response.json()["choices"]]
        assert texts == [tiny_engine.generate(question, seed=i + j, **options).text for j in range(2)]


async def test_log_probs_are_those_of_the_model(client: httpx.AsyncClient, tiny_engine: Engine) -> None:
    body = chat(logprobs=True, top_logprobs=2, nabla={"strategy": "greedy"})
    [choice] = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    result = tiny_engine.generate(QUESTION, budget=Budget(rollouts=1), sampling=Sampling(temperature=0))
    entries = choice["logprobs"]["content"]
    assert "".join(e["token"] for e in entries) == choice["message"]["content"]
    for entry, expected in zip(entries, result.log_probs, strict=False):
        assert entry["logprob"] == pytest.approx(expected, abs=1e-4)
        best, second = (t["logprob"] for t in entry["top_logprobs"])
        assert best >= second
        assert best == pytest.approx(entry["logprob"], abs=1e-4)  # greedy: the likeliest token is the chosen one
        assert math.exp(best) + math.exp(second) <= 1 + 1e-6


async def test_a_request_chooses_strategy_reward_and_budget(client: httpx.AsyncClient) -> None:
    wish = {"strategy": {"name": "best-of-n", "n": 3}, "reward": "arithmetic", "budget": {"rollouts": 3}}
    [choice] = (await client.post("/v1/chat/completions", json=chat(nabla=wish))).json()["choices"]
    assert choice["nabla"]["usage"]["rollouts"] == 3
    assert choice["nabla"]["verdict"] == 1.0
    assert choice["nabla"]["verified"] is True


async def test_without_a_seed_answers_differ_and_say_theirs(client: httpx.AsyncClient) -> None:
    """Chance of equal seeds: 2⁻³²."""
    bodies = [{**chat(), "seed": None, "nabla": {"strategy": "greedy"}} for _ in range(2)]
    first, second = [(await client.post("/v1/chat/completions", json=body)).json() for body in bodies]
    assert first["choices"][0]["nabla"]["seed"] != second["choices"][0]["nabla"]["seed"]


async def test_completions_take_texts_and_token_ids_verbatim(client: httpx.AsyncClient, tiny_engine: Engine) -> None:
    prompt = tiny_engine.prompt(QUESTION)
    wish = {"model": "tiny", "seed": 0, "max_tokens": 24, "nabla": {"strategy": "greedy"}}
    by_text = (await client.post("/v1/completions", json={**wish, "prompt": prompt.text})).json()
    by_ids = (await client.post("/v1/completions", json={**wish, "prompt": list(prompt.ids)})).json()
    assert by_text["choices"][0]["text"] == by_ids["choices"][0]["text"]
    expected = tiny_engine.generate(QUESTION, strategy=Greedy(), sampling=Sampling(max_tokens=24))
    assert by_text["choices"][0]["text"] == expected.text
    many = (await client.post("/v1/completions", json={**wish, "prompt": [prompt.text, "1 + 1"], "n": 2})).json()
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    assert many["choices"][0]["text"] == by_text["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_is_gone_before_its_answer_begins_takes_nobodys_place(
    make_app: Callable[..., FastAPI], stream: bool
) -> None:
    app = make_app(max_concurrent=1)
    body = json.dumps(chat("Hi", model="scripted", stream=stream)).encode()
    messages = [{"type": "http.request", "body": body}]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": headers}

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0.01)  # as a connection that is slow

    await app(scope, receive, send)
    async with asgi(app) as client:
        assert (await client.post("/v1/chat/completions", json=chat("Hi", model="scripted"))).status_code == 200
        assert "nabla_disconnects_total 1.0" in (await client.get("/metrics")).text


async def test_models_say_what_may_be_asked(client: httpx.AsyncClient, tiny_engine: Engine) -> None:
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["tiny", "scripted"]
    model = (await client.get("/v1/models/tiny")).json()
    assert model == listed["data"][0]
    assert model["max_model_len"] == tiny_engine.model.context_length
    assert model["nabla"]["rewards"] == ["arithmetic"]
    assert "best-of-n" in model["nabla"]["strategies"]


async def test_health_readiness_and_metrics(make_app: Callable[..., FastAPI]) -> None:
    app = make_app()
    async with asgi(app) as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).status_code == 200
        await client.post("/v1/chat/completions", json=chat(nabla={"strategy": "greedy"}))
        text = (await client.get("/metrics")).text
        assert 'nabla_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
        assert 'nabla_rollouts_total{model="tiny"} 1.0' in text
        assert "nabla_running 0.0" in text
        await app.state.service.drain(1)
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200


@pytest.mark.untyped
def test_an_application_needs_engines() -> None:
    with pytest.raises(ConfigurationError, match="expected an Engine"):
        create_app({})
    with pytest.raises(ConfigurationError, match="expected an Engine"):
        create_app("tiny")  # pyright: ignore[reportArgumentType]
