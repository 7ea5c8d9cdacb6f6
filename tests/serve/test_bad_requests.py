"""Whatever a client sends, it gets an error in OpenAI's form, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from nabla_agents import ConfigurationError
from nabla_agents.serve import ApiKey, ServeSettings, digest, new_key
from tests.serve.serving import WEATHER, asgi, chat, refused

CHAT = "/v1/chat/completions"
TEXTS = "/v1/completions"


async def still_answers(client: httpx.AsyncClient) -> None:
    body = chat("Hello", model="scripted")
    assert (await client.post(CHAT, json=body)).json()["choices"][0]["message"]["content"] == "It rains in Oslo."


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (b'{"model": "tiny", "messages": [', "invalid_json", "no JSON"),
        (b"", "invalid_body", "Expected a JSON object"),
        (b"[]", "invalid_body", "Expected a JSON object"),
        (b'"text"', "invalid_body", "Expected a JSON object"),
        (b'{"model": "tiny", "messages": "\xff\xfe"}', "invalid_json", "UTF-8"),
        (b"[" * 100_000, "invalid_json", "JSON"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_prompt", "cannot read"),
    ],
)
async def test_a_body_that_is_no_request(client: httpx.AsyncClient, content: bytes, code: str, words: str) -> None:
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    refused(response, 400, code, words)
    await still_answers(client)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": True}, "invalid_type", "temperature"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 1000}, "invalid_value", "n"),
        ({"max_tokens": 10**9}, "budget_above_cap", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "invalid_value", "max_tokens"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"nabla": {"colour": "red"}}, "unknown_parameter", "nabla.colour"),
        ({"frequency_penalty": 1.0}, "unsupported_parameter", "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
        ({"stop": [""]}, "invalid_value", "stop[0]"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "custom", "name": "x"}}, "unsupported_parameter", "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "invalid_value", None),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format.type"),
        ({"nabla": {"reward": "nobody"}}, "reward_not_found", "nabla.reward"),
        ({"nabla": {"strategy": "nobody"}}, "strategy_not_found", "nabla.strategy"),
        ({"nabla": {"strategy": {"name": "best-of-n", "n": 10**9}}}, "budget_above_cap", "nabla.strategy"),
        ({"nabla": {"strategy": {"name": "best-of-n", "colour": 1}}}, "invalid_value", "nabla.strategy"),
        ({"nabla": {"budget": {"rollouts": 1000}}}, "budget_above_cap", "nabla.budget.rollouts"),
        ({"nabla": {"budget": {"seconds": 1e9}}}, "budget_above_cap", "nabla.budget.seconds"),
        ({"nabla": {"budget": {"rollouts": -1}}}, "invalid_value", "nabla.budget.rollouts"),
    ],
)
async def test_a_request_that_cannot_be_met(
    client: httpx.AsyncClient, fields: dict[str, Any], code: str, param: str | None
) -> None:
    """The error says which parameter is wrong, and nothing has been computed."""
    response = await client.post(CHAT, json={**chat(model="scripted"), **fields})
    error = refused(response, 400, code)
    if param is not None:
        assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "nabla_rollouts_total{" not in (await client.get("/metrics")).text


def answers_in(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


def with_tool(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"tools": [WEATHER, {"type": "function", "function": {"name": "other", "parameters": parameters}}]}


ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
MISSPELT = {"type": "array", "items": {"properties": {"name": {"type": "strng"}}}}
ANSWER, OTHER = "response_format.json_schema.schema", "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (answers_in({"$ref": "#"}), ANSWER, ("refers to itself", "not required")),
        (answers_in(ENDLESS), ANSWER, ("refers to itself", "not required")),
        (answers_in(MISSPELT), f"{ANSWER}.items.properties.name.type", ("Invalid type: strng. Correct it",)),
        (answers_in({"$ref": "#/$defs/none"}), ANSWER, ("'/$defs/none' does not exist",)),
        (answers_in({"type": "array", "minItems": 2, "maxItems": 1}), ANSWER, ("minItems (2) is greater",)),
        (with_tool(ENDLESS), OTHER, ("refers to itself",)),
        (with_tool(MISSPELT), f"{OTHER}.items.properties.name.type", ("strng",)),
        ({**with_tool({"type": "object"}), **answers_in(MISSPELT)}, f"{ANSWER}.items.properties.name.type", ("strng",)),
    ],
)
async def test_a_schema_that_cannot_be_kept_to_is_named_by_its_place(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, words: tuple[str, ...]
) -> None:
    response = await client.post(CHAT, json={**chat(model="scripted"), **fields})
    error = refused(response, 400, "invalid_value", f"'{param}'", *words)
    assert error["param"] == param
    assert not any(word in error["message"] for word in ("guidance", "NoExtension", "lexeme", "%json"))


async def test_a_tool_choice_among_no_tools_is_named_as_it_was_sent(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat(model="scripted", tool_choice="required"))
    error = refused(response, 400, "invalid_value", "'required'", "there are no tools")
    assert "any" not in error["message"]


async def test_a_grammar_of_an_engine_elsewhere_that_does_not_compile_is_named(client: httpx.AsyncClient) -> None:
    prompt = {"messages": [{"role": "user", "content": "Hi"}], "text": "Hi"}
    body = {"model": "scripted", "prompt": prompt, "sampling": {"grammar": {"body": "/(/"}}}
    error = refused(await client.post("/v1/nabla/steps", json=body), 400, "invalid_value", "does not compile")
    assert error["param"] == "sampling.grammar"


async def test_what_is_neutral_is_taken(client: httpx.AsyncClient) -> None:
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "store": False,
        "modalities": ["text"],
        "functions": [],
        "user": "u",
        "metadata": {"a": "b"},
    }
    assert (await client.post(CHAT, json=chat("Hello", model="scripted", **neutral))).status_code == 200


async def test_unknown_models_and_places(client: httpx.AsyncClient) -> None:
    error = refused(await client.post(CHAT, json=chat(model="gpt-4")), 404, "model_not_found", "tiny", "scripted")
    assert error["param"] == "model"
    refused(await client.get("/v1/models/gpt-4"), 404, "model_not_found")
    refused(await client.get("/v1/embeddings"), 404, "unknown_url")
    response = await client.get(CHAT)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_a_conversation_that_does_not_fit_and_an_echo_are_refused(client: httpx.AsyncClient) -> None:
    refused(await client.post(CHAT, json=chat("word " * 20_000)), 400, "context_length_exceeded", "8192")
    refused(await client.post(TEXTS, json={"model": "tiny", "prompt": "x", "echo": True}), 400, "unsupported_parameter")


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("", "invalid_prompt"),
        ([], "invalid_value"),
        ([5, 10**9], "invalid_prompt"),
        ([-1], "invalid_prompt"),
        ([1] * 100_000, "context_length_exceeded"),
    ],
)
async def test_a_prompt_that_cannot_be_completed_is_named_as_the_client_named_it(
    client: httpx.AsyncClient, prompt: object, code: str
) -> None:
    response = await client.post(TEXTS, json={"model": "tiny", "prompt": prompt})
    assert refused(response, 400, code)["param"] == "prompt"


async def test_a_body_that_is_too_large_is_not_read(make_app: Callable[..., FastAPI]) -> None:
    read = 0

    async def endless() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1000
            yield b" " * 1000

    async with asgi(make_app(max_body_bytes=10_000)) as client:
        response = await client.post(CHAT, content=endless(), headers={"content-type": "application/json"})
        refused(response, 413, "request_too_large", "10000")
        assert read < 20_000
        response = await client.post(CHAT, content=b" " * 10_001)
        refused(response, 413, "request_too_large")
        await still_answers(client)


async def test_a_body_that_does_not_come_is_not_waited_for(make_app: Callable[..., FastAPI]) -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(30)
        yield b"}"

    async with asgi(make_app(body_seconds=0.05)) as client:
        refused(await client.post(CHAT, content=slow()), 408, "timeout")


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def api_key(name: str, key: str, **limits: Any) -> ApiKey:
    return ApiKey(id=name, sha256=digest(key), **limits)


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_keys(make_app: Callable[..., FastAPI]) -> None:
    good, old = new_key(), new_key()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    app = make_app(keys=(api_key("ann", good), api_key("old", old, expires=yesterday)))
    async with asgi(app) as client:
        for headers in ({}, bearing("nabla-wrong"), {"Authorization": f"Basic {good}"}, bearing("")):
            response = await client.get("/v1/models", headers=headers)
            refused(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        refused(await client.get("/v1/models", headers=bearing(old)), 401, "expired_api_key", "'old'")
        refused(await client.get("/metrics"), 401, "invalid_api_key")
        # who has no key cannot make the server read a body either
        refused(await client.post(CHAT, content=b"{"), 401, "invalid_api_key")
        assert (await client.get("/v1/models", headers=bearing(good))).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert good not in json.dumps(app.state.service.settings.model_dump(mode="json"))


async def test_without_keys_only_this_machine_is_answered(make_app: Callable[..., FastAPI]) -> None:
    app = make_app()
    async with asgi(app, client=("203.0.113.5", 1)) as client:
        refused(await client.get("/v1/models"), 403, "no_keys")
        assert (await client.get("/health")).status_code == 200
    async with asgi(app, headers={"Host": "elsewhere.example"}) as client:  # a page that points its name here
        refused(await client.get("/v1/models"), 403, "no_keys")
    async with asgi(app, headers={"Host": "[::1]:8000"}) as client:
        assert (await client.get("/v1/models")).status_code == 200
    async with asgi(make_app(anonymous=True), client=("203.0.113.5", 1)) as client:
        assert (await client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_open_address_needs_keys(host: str) -> None:
    with pytest.raises(ConfigurationError, match="nabla serve-key"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, keys=(api_key("ann", new_key()),)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert ServeSettings(host=host).on_loopback


async def test_a_key_has_its_own_rate_and_budget(make_app: Callable[..., FastAPI]) -> None:
    key, other = new_key(), new_key()
    keys = (api_key("ann", key, requests_per_minute=2, rollouts=3), api_key("bob", other))
    async with asgi(make_app(keys=keys), headers=bearing(key)) as client:
        above = {**chat("Hi", model="scripted"), "nabla": {"budget": {"rollouts": 4}}}
        refused(await client.post(CHAT, json=above), 400, "budget_above_cap", "at most 3")
        await still_answers(client)  # with the refused one, all that it may ask
        for route in (CHAT, TEXTS, "/v1/nabla/tokens"):
            refused(await client.post(route, json={}), 429, "rate_limit_exceeded")
        for route in ("/v1/models", "/v1/models/tiny", "/metrics", "/nowhere"):
            refused(await client.get(route), 429, "rate_limit_exceeded")
        assert (await client.get("/health")).status_code == 200
        response = await client.post(CHAT, json=chat("Hi", model="scripted"))
        refused(response, 429, "rate_limit_exceeded", "2 times a minute")
        assert 1 <= int(response.headers["retry-after"]) <= 31
        client.headers.update(bearing(other))
        await still_answers(client)


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_from_file_environment_and_keywords(tmp_path: Any) -> None:
    file, key = tmp_path / "serve.toml", new_key()
    file.write_text(f'port = 1\nmax_queued = 7\n[[keys]]\nid = "ann"\nsha256 = "{digest(key)}"\n', encoding="utf-8")
    environment = {"NABLA_SERVE_PORT": "2", "NABLA_SERVE_API_KEY": "x" * 20, "NABLA_SERVE_TRACING": "true", "HOME": "/"}
    settings = ServeSettings.read(file, environment, port=3)
    assert (settings.port, settings.max_queued, settings.tracing) == (3, 7, True)
    assert [k.id for k in settings.keys] == ["ann", "environment"]
    assert ServeSettings.read(file, environment).port == 2


@pytest.mark.parametrize(
    ("text", "environment", "words"),
    [
        ("port = ", {}, "TOML"),
        ("prot = 1", {}, "prot"),
        ("port = 99999", {}, "port"),
        ("", {"NABLA_SERVE_PROT": "1"}, "NABLA_SERVE_PROT is no setting"),
        ("", {"NABLA_SERVE_API_KEY": "short"}, "at least 16"),
        ("[[keys]]\nid = 'a b'\nsha256 = 'x'", {}, "keys"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Any, text: str, environment: dict[str, str], words: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=words):
        ServeSettings.read(file, environment)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ServeSettings.read(tmp_path / "missing.toml", {})
