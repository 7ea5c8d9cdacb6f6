"""RemoteEngine against the real server: it is the engine that is there, also when the way to it is bad."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from nabla_agents import (
    BestOfN,
    Budget,
    ConfigurationError,
    ContextOverflowError,
    Engine,
    FinishReason,
    Grammar,
    Greedy,
    Nabla,
    PromptError,
    RemoteEngine,
    RemoteError,
    RemoteStrategy,
    Sampling,
)
from nabla_agents.search.base import rollout_step
from nabla_agents.serve import Server
from nabla_agents.types import Step
from tests.remote.conftest import Faulty
from tests.serve.serving import QUESTION, until

pytestmark = pytest.mark.enable_socket
Remote = Callable[..., RemoteEngine]
SHORT = Sampling(max_tokens=64)


def test_it_answers_as_the_engine_that_is_there(remote: Remote, local: dict[str, Engine]) -> None:
    engine, there = remote(), local["tiny"]
    got, result = engine.generate(QUESTION, seed=2, sampling=SHORT), there.generate(QUESTION, seed=2, sampling=SHORT)
    for name in ("text", "token_ids", "finish_reason", "truncated", "seed", "prompt_tokens"):
        assert getattr(got, name) == getattr(result, name)
    assert got.usage.flops == result.usage.flops
    assert got.log_likelihood == pytest.approx(result.log_likelihood, abs=1e-4)
    assert got.score is not None
    assert result.score is not None
    assert got.score.value == pytest.approx(result.score.value, abs=1e-4)
    shown = [(step.kind, step.accepted, step.old_token, step.new_token, step.text) for step in result.trace]
    assert [(step.kind, step.accepted, step.old_token, step.new_token, step.text) for step in got.trace] == shown


def test_its_model_is_the_one_that_is_there(remote: Remote, local: dict[str, Engine]) -> None:
    model, there = remote(None).model, local["tiny"].model
    assert (model.name, model.context_length, model.vocab_size) == ("tiny", there.context_length, there.vocab_size)
    assert model.tokenizer.encode("12 * 3") == there.tokenizer.encode("12 * 3")
    assert [model.tokenizer.token_text(t) for t in (5, 50)] == [there.tokenizer.token_text(t) for t in (5, 50)]
    assert model.tokenizer.has_template is True
    assert model.tokenizer.knows_reasoning is there.tokenizer.knows_reasoning
    assert remote().budget.rollouts == local["tiny"].budget.rollouts


def test_prompts_are_rendered_there(remote: Remote, local: dict[str, Engine]) -> None:
    engine, there = remote(), local["tiny"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert engine.prompt(QUESTION) == there.prompt(QUESTION)
    assert engine.prompt(QUESTION, formatted=True) == there.prompt(QUESTION, formatted=True)
    conversation = [{"role": "system", "content": "Count."}, {"role": "user", "content": "1 + 1"}]
    assert engine.prompt(conversation, tools=tools) == there.prompt(conversation, tools=tools)


def test_a_batch_is_its_prompts_in_order(remote: Remote, local: dict[str, Engine]) -> None:
    questions = [QUESTION, "1 + 1", QUESTION]
    options: dict[str, Any] = {"strategy": BestOfN(n=2), "seeds": [5, 6, 7], "sampling": SHORT}
    got = remote().generate_batch(questions, **options)
    assert [r.text for r in got] == [r.text for r in local["tiny"].generate_batch(questions, **options)]
    assert remote().generate_batch([]) == []


def test_grammars_drafts_budgets_and_rewards_travel(remote: Remote, local: dict[str, Engine]) -> None:
    choice = Sampling(grammar=Grammar.choice(["yes", "no"]))
    assert remote().generate("Well?", sampling=choice).text in ("yes", "no")
    draft = {"draft": "12 * 3 = 36\nAnswer: 36", "budget": Budget(rollouts=1)}
    assert remote().generate(QUESTION, **draft).text == local["tiny"].generate(QUESTION, **draft).text
    judged = remote(reward="arithmetic").generate(QUESTION, strategy=Greedy())
    assert judged.score is not None
    assert judged.score.verified is True
    with pytest.raises(ConfigurationError, match="at most 64"):
        remote().generate(QUESTION, budget=Budget(rollouts=1000))
    with pytest.raises(ConfigurationError, match="not offered here"):
        remote(reward="nobody").generate(QUESTION)


def test_strategies_travel_by_name(remote: Remote) -> None:
    assert RemoteStrategy.of(BestOfN(n=3)) == RemoteStrategy("best-of-n", {"n": 3})
    assert RemoteStrategy.of(Nabla()) == RemoteStrategy("nabla")
    assert remote().generate(QUESTION, strategy=BestOfN(n=3), sampling=SHORT).usage.rollouts == 3
    with pytest.raises(ConfigurationError, match="not sent to a server"):
        remote(strategy=Nabla.paper())

    class Mine:
        rule = "objective"

        async def steps(self, search: Any) -> AsyncIterator[Step]:
            for entry in await search.roll([()], temperature=0.0):
                yield rollout_step(search, entry, accepted=True)

        def select(self, pool: Any) -> Any:
            return pool.best()

    with pytest.raises(ConfigurationError, match="only where its model is"):
        remote().generate(QUESTION, strategy=Mine())


def test_errors_are_those_of_the_engine(remote: Remote) -> None:
    with pytest.raises(ContextOverflowError, match="8192"):
        remote().generate("word " * 20_000)
    with pytest.raises(PromptError, match="empty"):
        remote().generate("  ")
    with pytest.raises(ConfigurationError, match="this server has 'tiny', 'scripted'"):
        remote("gpt-4").generate(QUESTION)
    with pytest.raises(ConfigurationError, match="expected for example http"):
        RemoteEngine("localhost:8000")


def test_a_cancelled_run_ends_at_once_and_there_too(remote: Remote, server: Server) -> None:
    run = remote().steps(QUESTION, strategy=RemoteStrategy("best-of-n"))
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(run.drain()))
    thread.start()
    service = server.config.app.state.service
    until(lambda: service.admission.running == 1)
    run.cancel()
    thread.join(30)
    assert ended[0].finish_reason is FinishReason.INTERRUPTED
    until(lambda: service.load == 0)


# ── faults on the way ─────────────────────────────────────────────────────────────────────────────────────────────


def busy(status: int, code: str | None = None, **headers: str) -> httpx.Response:
    error = {"error": {"message": "no", "type": "x", "param": None, "code": code}}
    return httpx.Response(status, json=error, headers=headers)


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), busy(503)])
def test_what_may_pass_is_tried_again(remote: Remote, pauses: list[float], fault: Any) -> None:
    transport = Faulty(fault, fault)
    result = remote("scripted", transport=transport).generate("Hello")
    assert result.text == "It rains in Oslo."
    assert len(pauses) == 2


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (400, None, RemoteError, "answered 400: no"),
        (401, "invalid_api_key", RemoteError, "answered 401: no"),
        (400, "context_length_exceeded", ContextOverflowError, "^no$"),
        (400, "invalid_prompt", PromptError, "^no$"),
        (404, "model_not_found", ConfigurationError, r"http://127.0.0.1:\d+: no$"),
    ],
)
def test_a_refusal_is_not_tried_again_and_is_the_error_that_its_code_says(
    remote: Remote, pauses: list[float], status: int, code: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        remote("scripted", api_key="secret-key", transport=Faulty(busy(status, code))).generate("Hello")
    assert type(raised.value) is error
    assert "secret-key" not in str(raised.value)
    assert pauses == []


def test_attempts_end(remote: Remote, pauses: list[float]) -> None:
    with pytest.raises(RemoteError, match="answered 503, tried 3 times: no"):
        remote("scripted", transport=Faulty(*[busy(503)] * 9), attempts=3).generate("Hello")
    assert len(pauses) == 2
    with pytest.raises(RemoteError, match="cannot be reached, tried 2 times: ConnectError"):
        RemoteEngine("http://127.0.0.1:1", attempts=2).generate("Hello")


def test_an_answer_that_breaks_off_is_an_error_and_nothing_is_resumed(remote: Remote, pauses: list[float]) -> None:
    class Breaking(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b": searching\n\n"
            raise httpx.ReadError("reset")

    for stream in (Breaking(), httpx.ByteStream(b"data: [DONE]\n\n")):
        engine = remote("scripted", transport=(transport := Faulty()))
        prompt = engine.prompt("Hello")
        transport.faults = [httpx.Response(200, stream=stream, headers={"content-type": "text/event-stream"})]
        transport.sent.clear()
        with pytest.raises(RemoteError, match="broke off .* Nothing was resumed"):
            engine.generate(prompt)
        assert transport.sent == ["/v1/nabla/steps"]
    assert pauses == []


def test_a_cancelled_run_does_not_wait_to_be_tried_again(remote: Remote) -> None:
    engine = remote("scripted", transport=(transport := Faulty()))
    prompt = engine.prompt("Hello")
    transport.faults = [busy(429, **{"retry-after": "60"})]
    run = engine.submit(engine.request(prompt))
    until(lambda: not transport.faults)
    began = time.monotonic()
    run.cancel()
    assert run.drain().finish_reason is FinishReason.INTERRUPTED
    assert time.monotonic() - began < 30
    assert transport.sent.count("/v1/nabla/steps") == 1


def test_a_server_of_another_kind_is_told_apart(pauses: list[float]) -> None:
    for answer in ({"json": {"data": [{"id": "gpt"}]}}, {"text": "<html>"}):
        models = httpx.MockTransport(lambda _, answer=answer: httpx.Response(200, **answer))
        with pytest.raises(RemoteError, match="no server of `nabla serve`|no JSON: .*; is it a server of"):
            RemoteEngine("http://example.test", transport=models).generate("Hello")


def test_it_needs_no_torch() -> None:
    code = "import sys, nabla_agents as na; na.RemoteEngine('http://x'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
