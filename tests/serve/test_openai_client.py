"""The official client of OpenAI against a server under uvicorn: it is what users have."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from nabla_agents import Engine
from nabla_agents.serve import Server, ServeSettings, create_app
from tests.serve.serving import QUESTION, WEATHER, running

pytestmark = pytest.mark.enable_socket
ASKED = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture(scope="module")
def server(engines: dict[str, Engine]) -> Iterator[Server]:
    settings = ServeSettings(port=0, shutdown_seconds=5)
    with running(create_app(engines, settings), settings) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_a_chat(client: openai.OpenAI, tiny_engine: Engine) -> None:
    got = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": QUESTION}],
        seed=0,
        extra_body={"nabla": {"strategy": "nabla"}},
    )
    result = tiny_engine.generate(QUESTION, seed=0)
    assert got.choices[0].message.content == result.text
    assert got.usage is not None
    assert got.usage.total_tokens == result.prompt_tokens + len(result.token_ids)
    assert got.choices[0].model_extra is not None
    assert got.choices[0].model_extra["nabla"]["usage"]["gradient_passes"] == result.usage.gradient_passes


def test_a_streamed_chat(client: openai.OpenAI) -> None:
    options = {"model": "scripted", "messages": ASKED, "stream": True}
    chunks = list(client.chat.completions.create(**options, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "It rains in Oslo."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in client.chat.completions.create(**options))


async def test_the_async_client(server: Server) -> None:
    base_url = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="scripted", messages=ASKED, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "It rains in Oslo."
        whole = await client.completions.create(model="scripted", prompt="Hello", max_tokens=4, n=2)
        assert len(whole.choices) == 2
        assert [m.id async for m in await client.models.list()] == ["tiny", "scripted"]


def test_a_conversation_with_a_tool(client: openai.OpenAI) -> None:
    """The client's loop: a call comes, its result goes back as the client sends it, an answer comes."""
    messages = list(ASKED)
    first = client.chat.completions.create(model="scripted", messages=messages, tools=[WEATHER]).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "Let me see."
    [call] = first.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    messages += [first.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    last = client.chat.completions.create(model="scripted", messages=messages, tools=[WEATHER]).choices[0]
    assert (last.finish_reason, last.message.content) == ("stop", "It rains in Oslo.")


def test_a_streamed_tool_call_adds_up(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=ASKED, tools=[WEATHER]) as stream:
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert message.content == "Let me see."


@pytest.mark.parametrize(
    ("choice", "called"),
    [("none", False), ("required", True), ({"type": "function", "function": {"name": "weather"}}, True)],
)
def test_tool_choice_is_enforced(client: openai.OpenAI, choice: object, called: bool) -> None:
    options = {"model": "scripted", "messages": ASKED, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 64}
    message = client.chat.completions.create(**options).choices[0].message
    assert bool(message.tool_calls) == called


def test_structured_answers_parse(client: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "Who is it?"}]
    parsed = client.chat.completions.parse(model="scripted", messages=asked, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
    options = {"model": "scripted", "messages": asked, "response_format": {"type": "json_object"}, "max_tokens": 40}
    assert isinstance(json.loads(client.chat.completions.create(**options).choices[0].message.content or ""), dict)


def test_stop_strings_end_the_answer(client: openai.OpenAI) -> None:
    for stream in (False, True):
        options = {"model": "scripted", "messages": ASKED, "stop": [" in"], "stream": stream}
        got = client.chat.completions.create(**options)
        text = "".join(c.choices[0].delta.content or "" for c in got) if stream else got.choices[0].message.content
        assert text == "It rains"


def test_several_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    texts = ["", ""]
    for chunk in client.chat.completions.create(model="scripted", messages=ASKED, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["It rains in Oslo."] * 2


def test_reasoning_is_told_apart(client: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "think: 2 + 2"}]
    message = client.chat.completions.create(model="scripted", messages=asked).choices[0].message
    assert message.content == "It is 4."
    assert message.model_extra is not None
    assert message.model_extra["reasoning_content"] == "2 and 2"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="Unknown parameter") as raised:
        client.chat.completions.create(model="tiny", messages=ASKED, extra_body={"colour": "red"})
    assert (raised.value.code, raised.value.param) == ("unknown_parameter", "colour")
