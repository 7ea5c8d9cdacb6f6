"""The MCP server, called by the SDK's own client: in process, over HTTP, and as a subprocess over stdio."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
import uvicorn
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from typer.testing import CliRunner

from nabla_agents import ArithmeticSteps, Budget, ConfigurationError, Engine, Greedy, Nabla, Rollout, Sampling, Usage
from nabla_agents.cli import app
from nabla_agents.serve.mcp import NablaTools, http_app, mcp_server
from tests.serve.serving import QUESTION, until

QUICK = {"question": QUESTION, "rollouts": 1, "max_tokens": 2}
KEY = "a-long-random-key-of-the-test"


class Watched:
    """The model's own rollouts, with a record of their calls; slow on demand."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds, self.calls, self.begun = model, 0.0, 0, threading.Event()

    def rollout(self, jobs: Sequence[Any]) -> list[Rollout]:
        self.calls += 1
        self.begun.set()
        time.sleep(self.seconds)
        return self.model.rollout(jobs)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.tiny(budget=Budget(rollouts=4))


@pytest.fixture
def watched(engine: Engine) -> Watched:
    return Watched(engine.model)


@pytest.fixture
def tools(engine: Engine, watched: Watched) -> NablaTools:
    slow = Engine(model=engine.model, reward=engine.objective.reward, rollouts=watched, budget=engine.budget)
    return NablaTools(slow, rewards={"arithmetic": ArithmeticSteps()}, strategies={"nabla": Nabla()}, max_rollouts=9)


@pytest.fixture
def address(tools: NablaTools, socket_enabled: None) -> Iterator[str]:
    with served(tools) as url:
        yield url


@contextmanager
def served(tools: NablaTools, **options: Any) -> Iterator[str]:
    """The address of the server on loopback, while it runs."""
    app = http_app(tools, **options)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    server.should_exit = True
    thread.join(timeout=20)


def said(result: Any) -> str:
    return result.content[0].text


# ── what the tools say ────────────────────────────────────────────────────────────────────────────────────────────


async def test_solve_gives_the_engines_answer_with_verdict_trace_and_ledger(tools: NablaTools, engine: Engine) -> None:
    expected = engine.generate(QUESTION, seed=3)
    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool("solve", {"question": QUESTION, "seed": 3})
    found: Any = result.structured_content
    assert not result.is_error
    assert found["answer"] == expected.text
    assert expected.score is not None
    assert found["verdict"]["score"] == pytest.approx(expected.score.value)
    assert found["trace"]["finish_reason"] == str(expected.finish_reason)
    assert found["trace"]["steps"] == len(expected.trace)
    assert found["trace"]["revisions"] == expected.summary()["revisions"] == len(found["trace"]["changes"])
    assert found["ledger"]["rollouts"] == expected.usage.rollouts
    assert set(found["ledger"]) == set(Usage().as_dict())


async def test_both_tools_are_listed_with_schemas_that_their_results_keep_to(tools: NablaTools) -> None:
    async with Client(mcp_server(tools)) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        solved = await client.call_tool("solve", {"question": QUESTION, "rollouts": 1})
        verified = await client.call_tool("verify", {"question": QUESTION, "answer": "12 * 3 = 36. The answer is 36."})
    assert set(listed) == {"solve", "verify"}
    solve = listed["solve"].input_schema
    assert solve["required"] == ["question"]
    assert solve["additionalProperties"] is False
    assert solve["properties"]["reward"]["anyOf"][0] == {"type": "string", "enum": ["arithmetic"]}
    assert solve["properties"]["rollouts"]["anyOf"][0]["maximum"] == 9
    for tool, result in ((listed["solve"], solved), (listed["verify"], verified)):
        assert tool.output_schema is not None
        jsonschema.validate(result.structured_content, tool.output_schema)


@pytest.mark.parametrize(("answer", "right"), [("12 * 3 = 36\n36 - 17 = 19", True), ("12 * 3 = 35", False)])
async def test_verify_says_whether_an_answer_is_right_and_where_it_is_wrong(
    tools: NablaTools, watched: Watched, answer: str, right: bool
) -> None:
    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool("verify", {"question": QUESTION, "answer": answer, "reward": "arithmetic"})
    found: Any = result.structured_content
    assert found["verdict"]["verified"] is right
    assert found["verdict"]["feedback"] == ("" if right else "Wrong: 12 * 3 = 36, not 35.")
    assert found["ledger"]["generated_tokens"] == 0
    wrong = [f for f in found["verdict"]["findings"] if f["value"] < 0]
    assert [answer[f["start"] : f["end"]] for f in wrong] == ([] if right else ["35"])


async def test_steps_are_told_as_progress_that_grows(tools: NablaTools) -> None:
    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool("solve", {"question": QUESTION}, progress_callback=hear)
    found: Any = result.structured_content
    assert [progress for progress, _ in heard] == list(range(1, found["trace"]["steps"] + 1))
    assert heard[-1][1] == f"{found['ledger']['rollouts']} rollouts: done"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("solve", {}, "question"),
        ("solve", {"question": ""}, "question"),
        ("solve", {"question": 7}, "question"),
        ("solve", {"question": "   "}, "The prompt is empty"),
        ("solve", {"question": "a", "rollouts": 0}, "rollouts"),
        ("solve", {"question": "a", "rollouts": 10}, "rollouts is 10; this server allows at most 9"),
        ("solve", {"question": "a", "seed": -1}, "seed"),
        ("solve", {"question": "a", "reward": "none"}, "Unknown reward 'none'; the server offers 'arithmetic'"),
        ("solve", {"question": "a", "strategy": "x"}, "Unknown strategy 'x'; the server offers 'nabla'"),
        ("solve", {"question": "a", "temprature": 1}, "temprature"),
        ("solve", {"question": "word " * 10_000}, "context"),
        ("verify", {"question": "a"}, "answer"),
        ("verify", {"question": "a", "answer": "1 " * 9_000}, "Shorten the draft"),
    ],
)
async def test_bad_input_is_an_error_with_words_and_the_server_goes_on(
    tools: NablaTools, tool: str, arguments: Any, words: str
) -> None:
    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert words in said(result)
        assert result.structured_content is None
        assert not (await client.call_tool("solve", QUICK)).is_error


async def test_an_unknown_tool_is_a_protocol_error(tools: NablaTools) -> None:
    async with Client(mcp_server(tools)) as client:
        with pytest.raises(MCPError, match="there are solve and verify"):
            await client.call_tool("refine", {})


async def test_verify_without_any_reward_says_so(engine: Engine) -> None:
    tools = NablaTools(Engine(model=engine.model, strategy=Greedy()))
    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool("verify", {"question": "a", "answer": "b"})
    assert "has no reward" in said(result)


async def test_what_breaks_inside_is_not_told_to_the_caller(
    tools: NablaTools, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "rollout", lambda jobs: 1 / 0)
    async with Client(mcp_server(tools)) as client:
        result = await client.call_tool("solve", {"question": QUESTION})
    assert result.is_error
    assert said(result) == "solve failed; see the log."


# ── many calls ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_calls_at_the_same_time_get_their_own_answers_and_progress(tools: NablaTools, engine: Engine) -> None:
    seeds = range(3)
    short = Sampling(max_tokens=24)
    expected = [engine.generate(QUESTION, seed=s, budget=Budget(rollouts=2), sampling=short).text for s in seeds]
    found: dict[int, str] = {}
    heard: dict[int, list[float]] = {s: [] for s in seeds}

    async def one(client: Client, seed: int) -> None:
        async def hear(progress: float, *_: Any) -> None:
            heard[seed].append(progress)

        arguments = {"question": QUESTION, "seed": seed, "rollouts": 2, "max_tokens": 24}
        result = await client.call_tool("solve", arguments, progress_callback=hear)
        assert result.structured_content is not None
        found[seed] = result.structured_content["answer"]

    async with Client(mcp_server(tools)) as client, anyio.create_task_group() as group:
        for seed in seeds:
            group.start_soon(one, client, seed)
    assert [found[s] for s in seeds] == expected
    assert all(row == list(range(1, len(row) + 1)) for row in heard.values())


async def test_too_many_calls_are_told_to_come_later(engine: Engine, watched: Watched) -> None:
    tools = NablaTools(Engine(model=engine.model, strategy=Nabla(), rollouts=watched), concurrent=1, waiting=1)
    watched.seconds = 0.3
    errors: list[str] = []

    async def one(client: Client) -> None:
        result = await client.call_tool("solve", QUICK)
        errors.extend([said(result)] if result.is_error else [])

    async with Client(mcp_server(tools)) as client, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one, client)
    assert len(errors) == 2
    assert all("busy" in error for error in errors)


async def cancelled(client: Client, watched: Watched) -> None:
    """Calls `solve`, cancels it in its first operation, and holds it to what it does then."""
    watched.seconds = 0.1
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "solve", {"question": QUESTION, "rollouts": 9})
            await anyio.to_thread.run_sync(watched.begun.wait)
            scope.cancel()
    await anyio.sleep(0.5)
    assert watched.calls == 1  # a search of nine would be at its third
    watched.seconds = 0.0
    assert not (await client.call_tool("solve", QUICK)).is_error
    assert watched.calls == 2


async def test_a_cancelled_call_stops_before_its_next_operation(tools: NablaTools, watched: Watched) -> None:
    async with Client(mcp_server(tools)) as client:
        await cancelled(client, watched)


# ── over HTTP ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_http_has_the_same_answers_progress_and_cancellation(
    address: str, engine: Engine, watched: Watched
) -> None:
    heard: list[float] = []

    async def hear(progress: float, *_: Any) -> None:
        heard.append(progress)

    async with Client(address) as client, Client(address) as other:
        arguments = {"question": QUESTION, "seed": 2, "max_tokens": 16}
        result = await client.call_tool("solve", arguments, progress_callback=hear)
        assert result.structured_content is not None
        expected = engine.generate(QUESTION, seed=2, sampling=Sampling(max_tokens=16))
        assert result.structured_content["answer"] == expected.text
        assert heard == list(range(1, result.structured_content["trace"]["steps"] + 1))
        verified = await other.call_tool("verify", {"question": "a", "answer": "1 + 1 = 2", "reward": "arithmetic"})
        assert verified.structured_content is not None
        assert verified.structured_content["verdict"]["verified"] is True
        watched.calls = 0
        watched.begun.clear()
        await cancelled(client, watched)


@pytest.mark.usefixtures("socket_enabled")
async def test_http_with_keys_answers_only_those_who_have_one(tools: NablaTools) -> None:
    with served(tools, keys=[KEY]) as url:
        async with httpx.AsyncClient() as plain:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
                refused = await plain.post(url, json={}, headers=headers)
                assert refused.status_code == 401
                assert "key is needed" in refused.text
            known = await plain.post(url, json={}, headers={"Authorization": f"Bearer {KEY}"})
            assert known.status_code != 401


async def test_http_refuses_a_browsers_other_origin(address: str) -> None:
    async with httpx.AsyncClient() as plain:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            assert (await plain.post(address, json={}, headers=headers)).status_code in (403, 421)


def test_elsewhere_than_on_loopback_a_key_is_needed_and_a_short_one_is_none(tools: NablaTools) -> None:
    with pytest.raises(ConfigurationError, match=r"host 0\.0\.0\.0 can be reached from other machines"):
        http_app(tools, host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="less than 16 characters"):
        http_app(tools, keys=["short"])
    http_app(tools, host="0.0.0.0", keys=[KEY])


# ── the command ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_command_serves_a_client_over_stdio() -> None:
    """A real subprocess, without the extra `serve`: answers, progress, errors, a cancelled call, and an end when the
    client leaves.
    """
    without = "import sys; sys.modules['fastapi'] = sys.modules['prometheus_client'] = None"
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-c", f"{without}; from nabla_agents.cli import main; main()", "mcp", "--rollouts", "3"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    heard: list[float] = []

    async def hear(progress: float, *_: Any) -> None:
        heard.append(progress)

    with anyio.fail_after(100):
        async with Client(stdio_client(parameters)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"solve", "verify"}
            short = {"question": QUESTION, "max_tokens": 24}
            result = await client.call_tool("solve", short, progress_callback=hear)
            assert result.structured_content is not None
            assert result.structured_content["answer"]
            assert heard == list(range(1, result.structured_content["trace"]["steps"] + 1))
            refused = await client.call_tool("solve", {"question": QUESTION, "rollouts": 65})
            assert "at most 64" in said(refused)
            with anyio.move_on_after(0.05):
                await client.call_tool("solve", {"question": QUESTION, "rollouts": 64, "strategy": "best-of-n"})
            verified = await client.call_tool(
                "verify", {"question": "a", "answer": "1 + 1 = 3", "reward": "arithmetic"}
            )
            assert verified.structured_content is not None
            assert verified.structured_content["verdict"]["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--transport", "sse"], "Unknown transport 'sse'; known are stdio, http"),
        (["--strategy", "x"], "Unknown strategy 'x'"),
        (["--reward", "x"], "Unknown reward 'x'"),
        (["--offer", "x"], "Unknown reward 'x'"),
        (["--rollouts", "0"], "Budget.rollouts is 0"),
        (["--transport", "http", "--host", "0.0.0.0"], "needs a key"),
    ],
)
def test_the_command_refuses_what_cannot_work_before_anything_is_loaded(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nabla_agents.models.language_model.load", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.delenv("NABLA_MCP_KEY", raising=False)
    done = CliRunner().invoke(app, ["mcp", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr.replace("\n", " ")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    for name in [n for n in sys.modules if n.startswith("nabla_agents.serve.mcp")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigurationError, match=r"pip install 'nabla-agents\[mcp\]'"):
        importlib.import_module("nabla_agents.serve.mcp")
