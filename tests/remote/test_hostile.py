"""RemoteEngine against servers that misbehave: whatever they send, or do not, ends as a `RemoteError`, and soon."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nabla_agents import FinishReason, Greedy, RemoteEngine, RemoteError, Result, Sampling
from nabla_agents.backends import body
from nabla_agents.remote import search
from nabla_agents.serialization import SentResult, SentStep
from nabla_agents.types import Score, Span, Step, TokenGain, Usage
from tests.backends.hostile import BAD_HTTP, HostileServer, Reply, answer, for_ever, stream

pytestmark = [pytest.mark.enable_socket, pytest.mark.timeout(60)]

CARD: dict[str, Any] = {
    "id": "tiny",
    "max_model_len": 64,
    "nabla": {
        "vocab_size": 10,
        "strategies": ["greedy"],
        "rewards": [],
        "budget": {"rollouts": 8, "seconds": None},
        "chat_template": None,
    },
}
PROMPT: dict[str, Any] = {"text": "<user>a", "ids": [1, 2]}
TOKENS: dict[str, Any] = {"ids": [3], "texts": ["b"]}
SCORE = Score(1.0, verdict=1.0, spans=(Span(0, 1, 1.0),))
ROLLOUT = Step("rollout", "b", True, 0, "a", "b", gains=(TokenGain(0, 1, "c", 0.5),), score=SCORE, text="b")
STEP: dict[str, Any] = SentStep(step=ROLLOUT).model_dump(mode="json")
LAST: dict[str, Any] = SentStep(step=Step("commit", "b", text="b", done=True)).model_dump(mode="json")
RESULT: dict[str, Any] = {
    "result": SentResult.of(
        Result("b", (3,), SCORE, FinishReason.STOP, Usage(rollouts=1), log_probs=(-0.5,), log_likelihood=-0.5), ["b"]
    ).model_dump(mode="json")
}
GOOD: dict[str, Reply] = {
    "/v1/models/tiny": answer(CARD),
    "/v1/models": answer({"data": [CARD]}),
    "/v1/nabla/prompt": answer(PROMPT),
    "/v1/nabla/tokens": answer(TOKENS),
    "/v1/nabla/steps": stream(STEP, LAST, RESULT),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileServer]:
    monkeypatch.setattr(body, "MOST_BYTES", 1 << 20)
    started = HostileServer()
    started.replies = dict(GOOD)
    with started.running():
        yield started


def asked(server: HostileServer, model: str | None = "tiny") -> Result:
    engine = RemoteEngine(server.url, model=model, timeout=0.4, deadline=1.0, attempts=1, strategy=Greedy())
    try:
        return engine.generate("a", sampling=Sampling(max_tokens=8))
    finally:
        engine.close()


def refused(server: HostileServer, model: str | None = "tiny") -> None:
    began = time.monotonic()
    with pytest.raises(RemoteError) as raised:
        asked(server, model)
    assert time.monotonic() - began < 20
    assert type(raised.value) is RemoteError
    assert len(str(raised.value)) < 3000
    str(raised.value).encode()


def test_a_server_that_behaves_is_believed(server: HostileServer) -> None:
    """What the others change one thing of."""
    assert asked(server).text == asked(server, None).text == "b"


@pytest.mark.parametrize("path", ["/v1/models/tiny", "/v1/nabla/prompt", "/v1/nabla/steps"])
@pytest.mark.parametrize("name", BAD_HTTP)
def test_bad_http_is_a_remote_error_wherever_it_comes(server: HostileServer, path: str, name: str) -> None:
    server.replies[path] = BAD_HTTP[name]
    refused(server)


# ── JSON that is another than it should be ────────────────────────────────────────────────────────────────────────

GONE = object()
HUGE, DEEP = 10**400, [[[[[[]]]]]]


def changed(value: Any, path: str, to: Any) -> Any:
    """A copy with one of its fields changed, or gone."""
    value = copy.deepcopy(value)
    *above, last = path.split(".")
    inner = value
    for name in above:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    if to is GONE:
        del inner[last]
    elif isinstance(inner, list):
        inner[int(last)] = to
    else:
        inner[last] = to
    return value


CARDS = [
    ("id", [1, None, "", [], GONE, "x" * 5000]),
    ("max_model_len", ["64", 0, -1, 1.5, HUGE, float("nan"), float("inf"), True, None, GONE]),
    ("nabla", [None, [], "x", GONE, DEEP]),
    ("nabla.vocab_size", ["10", 0, -10, HUGE, {}, GONE, float("nan")]),
    ("nabla.strategies", ["greedy", None, [1], {}, GONE]),
    ("nabla.rewards", [7, [None], GONE]),
    ("nabla.budget", [None, [], {"rollouts": 0}, {"rollouts": "8"}, {"flops": -1}, {"dollars": 1}, GONE]),
    ("nabla.chat_template", [1, {}, ["a"], GONE]),
]
PROMPTS = [
    ("text", [None, 1, ["a"], GONE]),
    ("ids", [None, "12", [1.5], ["1"], [-1], [10], [HUGE], [[1]], {"0": 1}, [True], GONE]),
]
LISTS: list[Any] = [{"data": d} for d in (None, [], {}, "x", 1, [1], [None], [[]], [{}], [{"id": "tiny"}])]


def cases(fields: list[tuple[str, list[Any]]]) -> list[Any]:
    pairs = [(path, to) for path, values in fields for to in values]
    return [pytest.param(path, to, id=f"{path}={'gone' if to is GONE else str(to)[:12]}") for path, to in pairs]


@pytest.mark.parametrize(("path", "to"), cases(CARDS))
def test_a_card_of_another_shape(server: HostileServer, path: str, to: Any) -> None:
    server.replies["/v1/models/tiny"] = answer(changed(CARD, path, to))
    refused(server)


@pytest.mark.parametrize("models", LISTS, ids=str)
def test_a_list_of_models_that_is_none(server: HostileServer, models: Any) -> None:
    server.replies["/v1/models"] = answer(models)
    refused(server, None)


@pytest.mark.parametrize(("path", "to"), cases(PROMPTS))
def test_a_prompt_of_another_shape(server: HostileServer, path: str, to: Any) -> None:
    server.replies["/v1/nabla/prompt"] = answer(changed(PROMPT, path, to))
    refused(server)


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"ids": [3]},
        {"ids": [3], "texts": []},
        {"ids": [4], "texts": ["b"]},
        {"ids": [], "texts": []},
        {"ids": [10], "texts": ["b"]},
        {"ids": "3", "texts": "b"},
        {"ids": [3], "texts": [1]},
    ],
    ids=str,
)
def test_tokens_that_were_not_asked_for(server: HostileServer, tokens: Any) -> None:
    server.replies["/v1/nabla/tokens"] = answer(tokens)
    engine = RemoteEngine(server.url, model="tiny", timeout=1.0, attempts=1)
    with pytest.raises(RemoteError):
        engine.model.tokenizer.token_text(3)
    engine.close()


STEPS = [
    ("step", [None, [], "x", 1, GONE]),
    ("step.kind", ["refined", None, 1, GONE]),
    ("step.committed_text", [None, 1, [], GONE]),
    ("step.accepted", ["perhaps", [], 2]),
    ("step.position", [-1, "x", 1.5, HUGE]),
    ("step.log_likelihood", ["x", None, [], {}]),
    ("step.usage", [None, [], 3]),
    ("step.usage.rollouts", [-1, "x", HUGE, 1.5, None, float("nan")]),
    ("step.usage.flops", [-1, "x", float("inf"), float("nan"), HUGE]),
    ("step.usage.seconds", [-0.5, "Infinity"]),
    ("step.score", [1, "x", []]),
    ("step.score.value", ["x", None, []]),
    ("step.score.usage.reward_calls", [-1]),
    ("step.score.spans", [None, [1], [{"start": 2, "end": 1, "value": 0}], [{"start": -1, "end": 1, "value": 0}]]),
    ("step.score.spans.0.value", [7, "x", float("nan")]),
    ("step.gains.0.start", [-1, 5, HUGE, "x"]),
]
RESULTS = [
    ("result", [None, [], "x", 1, GONE, {}]),
    ("result.text", [None, 1, GONE]),
    ("result.token_ids", [None, [10], [-1], ["x"], [HUGE], [3, 3], GONE]),
    ("result.token_texts", [[], ["b", "b"], [1], GONE]),
    ("result.log_probs", [[-0.5, -0.5], ["x"], [None], GONE]),
    ("result.finish_reason", ["done", None, 1, GONE]),
    ("result.usage.generated_tokens", [-1, HUGE]),
    ("result.seed", [1, -1, HUGE, "x", GONE]),
    ("result.prompt_tokens", [-1, HUGE, "x"]),
    ("result.score.spans.0.start", [-4]),
]
OTHER: dict[str, Reply] = {
    "no events": answer({"step": 1}),
    "events of another kind": stream(STEP, LAST, RESULT, kind="application/json"),
    "an error": stream(STEP, {"error": {"message": "x" * 100_000}}),
    "an error of another shape": stream({"error": ["a", {"b": 1}]}),
    "an error that is null": stream({"error": None}),
    "no result": stream(STEP, LAST),
    "no end": stream(STEP, LAST, RESULT, done=b""),
    "half an end": stream(STEP, LAST, RESULT, done=b"data: [DO"),
    "nothing but an end": stream(),
    "two last steps": stream(STEP, LAST, LAST, RESULT),
    "two results": stream(STEP, LAST, RESULT, RESULT),
    "a step after the last": stream(LAST, STEP, RESULT),
    "a step after the result": stream(STEP, RESULT, LAST),
    "text that is taken back": stream(STEP, changed(STEP, "step.committed_text", "a"), LAST, RESULT),
    "events that are none": stream([1], LAST, RESULT),
    "an empty event": stream({}, LAST, RESULT),
    "no JSON": stream(b"data: {\n\n"),
    "nested": stream(b"data: " + b"[" * 100_000 + b"\n\n"),
    "half a pair": stream(b'data: {"step": {"kind": "rollout", "committed_text": "\\ud800"}}\n\n'),
    "no text": stream(b"data: \xff\xfe\n\n"),
    "comments for ever": for_ever(b": searching\n\n", after=stream(done=b""), pause=0.05),
    "steps for ever": for_ever(stream(STEP, done=b"").partition(b"\r\n\r\n")[2] * 100, after=stream(done=b"")),
    "drop by drop": for_ever(b"d", after=stream(done=b""), pause=0.05),
}


@pytest.mark.parametrize(("path", "to"), cases(STEPS))
def test_a_step_of_another_shape(server: HostileServer, path: str, to: Any) -> None:
    server.replies["/v1/nabla/steps"] = stream(changed(STEP, path, to), LAST, RESULT)
    refused(server)


@pytest.mark.parametrize(("path", "to"), cases(RESULTS))
def test_a_result_of_another_shape(server: HostileServer, path: str, to: Any) -> None:
    server.replies["/v1/nabla/steps"] = stream(STEP, LAST, changed(RESULT, path, to))
    refused(server)


@pytest.mark.parametrize("name", OTHER)
def test_a_stream_that_is_no_search(server: HostileServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MOST_KEPT", 1 << 20)
    server.replies["/v1/nabla/steps"] = OTHER[name]
    refused(server)


def test_what_some_take_for_the_end_of_a_line_is_text(server: HostileServer) -> None:
    text = "a\u2028b\x85c"
    raw = stream(STEP, LAST, changed(RESULT, "result.text", text)).decode()
    server.replies["/v1/nabla/steps"] = raw.replace("\\u2028", "\u2028").replace("\\u0085", "\x85").encode()
    assert asked(server).text == text
