"""Drafts of another server, refined: better where the reward knows better; what is not for the model here stays."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from nabla_agents import ArithmeticSteps, Engine, Greedy
from nabla_agents.serve import ServeSettings, create_app
from nabla_agents.tiny import is_correct, problems
from tests.serve.other_server import OtherServer, answering, says
from tests.serve.serving import QUESTION, WEATHER, asgi, chat, events, refused, running

pytestmark = pytest.mark.enable_socket

CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
WRONG = "12 * 3 = 36\n36 - 17 = 20\nAnswer: 20"
RIGHT = "12 * 3 = 36\n36 - 17 = 19\nAnswer: 19"
BY_RULE: dict[str, Any] = {"reward": "arithmetic"}


@pytest.fixture(scope="module")
def _other() -> Iterator[OtherServer]:
    started = OtherServer()
    with started.running():
        yield started


@pytest.fixture
def other(_other: OtherServer) -> OtherServer:
    _other.got.clear()
    return _other


@pytest.fixture
async def client(tiny_engine: Engine, other: OtherServer) -> AsyncIterator[httpx.AsyncClient]:
    settings = ServeSettings(upstream=other.url, max_tokens=200)
    app = create_app(tiny_engine, settings, rewards={"arithmetic": ArithmeticSteps()})
    async with asgi(app) as found:
        yield found
    app.state.service.close()
    app.state.upstream.close()


def asked(**fields: Any) -> dict[str, Any]:
    return chat(**{"model": "big", "nabla": BY_RULE, **fields})


async def test_a_wrong_draft_is_revised(client: httpx.AsyncClient, other: OtherServer) -> None:
    other.act = answering(says(WRONG))
    answer = (await client.post(CHAT, json=asked(stream=False, stream_options=None, top_p=0.9))).json()
    [choice] = answer["choices"]
    assert choice["message"]["content"] == RIGHT
    assert (choice["finish_reason"], answer["model"]) == ("stop", "big")
    assert (choice["nabla"]["draft"], choice["nabla"]["verified"], choice["nabla"]["revisions"]) == ("revised", True, 1)
    assert answer["nabla"]["upstream"]["usage"] == says("")["usage"]
    [got] = other.got
    assert got.json == {name: value for name, value in asked(top_p=0.9).items() if name != "nabla"}
    metrics = (await client.get("/metrics")).text
    assert 'nabla_drafts_total{became="revised"} 1.0' in metrics
    assert 'nabla_answers_total{finish="verified",model="tiny"} 1.0' in metrics


async def test_a_right_draft_is_kept(client: httpx.AsyncClient, other: OtherServer) -> None:
    other.act = answering(says(RIGHT))
    [choice] = (await client.post(CHAT, json=asked())).json()["choices"]
    assert choice["message"]["content"] == RIGHT
    assert (choice["nabla"]["draft"], choice["nabla"]["revisions"]) == ("kept", 0)


async def test_a_refined_stream_adds_up(client: httpx.AsyncClient, other: OtherServer) -> None:
    other.act = answering(says(WRONG))
    body = asked(stream=True, stream_options={"include_usage": True})
    *pieces, usage, done = events((await client.post(CHAT, json=body)).text)
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert (text, done) == (RIGHT, "[DONE]")
    assert pieces[-1]["choices"][0]["nabla"]["draft"] == "revised"
    assert usage["nabla"]["upstream"]["usage"]["total_tokens"] == 39
    assert not {"stream", "stream_options", "nabla"} & set(other.got[0].json)


async def test_a_text_is_refined_too(client: httpx.AsyncClient, other: OtherServer, tiny_engine: Engine) -> None:
    choice = {"index": 0, "text": WRONG, "finish_reason": "stop", "logprobs": None}
    other.act = answering({"object": "text_completion", "choices": [choice]})
    prompt = tiny_engine.prompt(QUESTION).text
    answer = (await client.post(TEXTS, json={"model": "big", "prompt": prompt, "nabla": BY_RULE, "seed": 0})).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["nabla"]["draft"]) == (RIGHT, "revised")
    assert answer["nabla"]["upstream"]["usage"] == {}
    assert other.got[0].path == TEXTS


async def test_a_draft_that_is_brought_is_refined_without_the_upstream(
    client: httpx.AsyncClient, other: OtherServer
) -> None:
    answer = (await client.post(CHAT, json=asked(nabla={**BY_RULE, "draft": WRONG}))).json()
    assert answer["choices"][0]["message"]["content"] == RIGHT
    assert "upstream" not in answer["nabla"]
    brought = {"nabla": {"draft": WRONG}}
    refused(await client.post(CHAT, json=asked(n=2, **brought)), 400, "invalid_value", "2 answers")
    assert other.got == []


# ── what stays as it is ───────────────────────────────────────────────────────────────────────────────────────────────

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "required": ["b"]}}}
DEEP: Any = json.loads('{"items": ' * 90 + "{}" + "}" * 90)
STAYS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"tools": [WEATHER]}, says(None, reason="tool_calls", tool_calls=[CALL]), "The draft calls tools."),
    ({"tools": [WEATHER]}, says("", tool_calls=[CALL]), "The draft calls tools."),
    ({}, says("12 *", reason="length"), "The draft has the finish reason 'length'."),
    ({}, says(None), "The draft has no text."),
    ({}, says("1 " * 500), "The draft has "),
    ({"messages": IMAGE}, says(WRONG), "Content of type 'image_url' is not supported"),
    ({"n": 2}, {**says(WRONG), "choices": says(WRONG)["choices"] * 2}, "2 answers are asked for"),
    ({"frequency_penalty": 0.5}, says(WRONG), "Unsupported parameter: 'frequency_penalty'"),
    ({"vendor": 1}, says(WRONG), "Unknown parameter: 'vendor'"),
    ({"response_format": SCHEMA}, says(WRONG), "The draft does not keep to the request's grammar"),
    ({"response_format": {**SCHEMA, "json_schema": {"name": "a", "schema": DEEP}}}, says("{}"), "64 deep"),
    ({"messages": [{"role": "user", "content": ""}] * 9000}, says(WRONG), "has 9000 messages; the context is 8192"),
]


@pytest.mark.parametrize(("fields", "reply", "why"), STAYS, ids=[why for _, _, why in STAYS])
async def test_what_is_not_for_the_model_here_comes_back_and_says_why(
    client: httpx.AsyncClient, other: OtherServer, fields: dict[str, Any], reply: dict[str, Any], why: str
) -> None:
    other.act = answering(reply)
    answer = (await client.post(CHAT, json=asked(**fields))).json()
    for choice in answer["choices"]:
        told = choice.pop("nabla")
        assert told["draft"] == "passed"
        assert why in told["detail"]
    assert answer == reply
    text = (await client.post(CHAT, json=asked(stream=True, stream_options={"include_usage": True}, **fields))).text
    *pieces, usage, done = events(text)
    assert (usage["usage"], usage["choices"], done) == (reply["usage"], [], "[DONE]")
    for piece, whole in zip(pieces, reply["choices"], strict=True):
        [choice] = piece["choices"]
        message = dict(whole["message"])
        if "tool_calls" in message:
            message["tool_calls"] = [{"index": 0, **CALL}]
        assert (choice["delta"], choice["finish_reason"]) == (message, whole["finish_reason"])
        assert why in choice["nabla"]["detail"]
        assert piece["object"] == "chat.completion.chunk"
    assert 'nabla_drafts_total{became="passed"} 2.0' in (await client.get("/metrics")).text


async def test_openais_client_reads_calls_that_were_streamed(client: httpx.AsyncClient, other: OtherServer) -> None:
    other.act = answering(says(None, reason="tool_calls", tool_calls=[CALL]))
    openai = AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=client)
    body = asked(tools=[WEATHER], extra_body={"nabla": BY_RULE})
    del body["nabla"]
    async with openai.chat.completions.stream(**body) as stream:
        whole = await stream.get_final_completion()
    [call] = whole.choices[0].message.tool_calls or []
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "weather", '{"city":"Oslo"}')
    assert whole.choices[0].finish_reason == "tool_calls"


async def test_token_ids_are_the_upstreams_own(client: httpx.AsyncClient, other: OtherServer) -> None:
    other.act = answering({"object": "text_completion", "choices": [{"text": "a", "finish_reason": "stop"}]})
    for prompt in ([1, 2], ["a"]):
        body = {"model": "big", "prompt": prompt, "nabla": {}, "stream": True}
        [piece, _] = events((await client.post(TEXTS, json=body)).text)
        assert piece["choices"][0]["text"] == "a"
        assert "token ids" in piece["choices"][0]["nabla"]["detail"]


@pytest.mark.parametrize(
    ("nabla", "code"),
    [
        (1, "invalid_type"),
        ({"stategy": "nabla"}, "unknown_parameter"),
        ({"strategy": "nobody"}, "strategy_not_found"),
        ({"strategy": {"name": "nabla", "openings": 10**9}}, "budget_above_cap"),
        ({"budget": {"rollouts": 10**6}}, "budget_above_cap"),
        ({"budget": {"rollouts": "4"}}, "invalid_type"),
        ({"reward": "nobody"}, "reward_not_found"),
    ],
)
async def test_the_field_is_judged_before_the_upstream_is_asked(
    client: httpx.AsyncClient, other: OtherServer, nabla: Any, code: str
) -> None:
    for fields in ({}, {"messages": IMAGE}):
        response = await client.post(CHAT, json=asked(nabla=nabla, **fields))
        assert refused(response, 400, code)["param"].startswith("nabla")
    assert other.got == []


async def test_a_draft_is_handed_on_where_too_many_wait(tiny_engine: Engine, other: OtherServer) -> None:
    """It is there, and paid for."""
    other.act = answering(says(WRONG))
    app = create_app(tiny_engine, ServeSettings(upstream=other.url, max_concurrent=1, max_queued=0))
    [ticket] = app.state.service.admission.enter("another", 1)
    async with asgi(app) as client:
        [choice] = (await client.post(CHAT, json=asked(nabla={}))).json()["choices"]
    assert choice["message"]["content"] == WRONG
    assert "busy" in choice["nabla"]["detail"]
    app.state.service.admission.leave(ticket)
    app.state.service.close()
    app.state.upstream.close()


@pytest.mark.parametrize(
    "reply", [b"{", b"[]", b'{"choices": []}', b'{"choices": [1]}', b'{"choices": [{}], "a": 1e999}']
)
async def test_an_answer_that_is_none_is_a_bad_gateway(
    client: httpx.AsyncClient, other: OtherServer, reply: bytes
) -> None:
    other.act = answering(reply)
    refused(await client.post(CHAT, json=asked()), 502, "upstream_failed")


def test_a_server_of_ours_may_be_the_upstream(tiny_engine: Engine) -> None:
    """The model alone has the second test question wrong, and with the calculator right."""
    problem = problems(2, seed=0, split="test")[1]
    plain = ServeSettings(port=0)
    alone = Engine(model=tiny_engine.model, strategy=Greedy())
    with running(create_app({"tiny": alone}, plain), plain) as first:
        settings = ServeSettings(port=0, upstream=f"http://127.0.0.1:{first.port}/v1")
        app = create_app(tiny_engine, settings, rewards={"arithmetic": ArithmeticSteps()})
        with (
            running(app, settings) as second,
            httpx.Client(base_url=f"http://127.0.0.1:{second.port}", timeout=60) as client,
        ):

            def right(**fields: Any) -> bool:
                answer = client.post(CHAT, json=chat(problem.question, **fields)).json()
                return is_correct(answer["choices"][0]["message"]["content"], problem)

            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["tiny"]
            assert (right(), right(nabla=BY_RULE)) == (False, True)
