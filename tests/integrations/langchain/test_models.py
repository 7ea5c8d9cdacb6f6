"""What `ChatNabla` and `NablaLLM` promise alike. Texts are compared between paths, never with literals."""

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

import nabla_agents
from langchain_nabla import ChatNabla, NablaLLM
from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    FeedbackDirection,
    GradientDirection,
    Greedy,
    MirrorDTO,
    ModelLoadError,
    Nabla,
    NablaParallel,
    NoDirection,
    Sampling,
)
from nabla_agents.adapters import shared_engines
from nabla_agents.testing import FixedReward

from .conftest import six_ways, text

QUESTIONS = ["Tom has 3 boxes with 4 apples each. How many apples are left?", "What is 12 * 7 + 9?"]
both = pytest.mark.parametrize("model", [ChatNabla, NablaLLM])
Model = type[ChatNabla] | type[NablaLLM]


@pytest.mark.parametrize(
    ("model", "options"),
    [(ChatNabla, {"temperature": 1.0, "seed": 3}), (NablaLLM, {}), (NablaLLM, {"strategy": BestOfN(n=2), "seed": 1})],
)
async def test_six_paths_give_the_text_of_the_engine(engine: Engine, model: Model, options: dict[str, Any]) -> None:
    llm = model(engine=engine, max_tokens=6, **options)
    sampling = Sampling(max_tokens=6, temperature=options.get("temperature"))
    seed, strategy = options.get("seed", 0), options.get("strategy")
    expected = engine.generate(QUESTIONS[0], seed=seed, sampling=sampling, strategy=strategy).text
    assert [*map(text, await six_ways(llm, QUESTIONS[0]))] == [expected] * 6
    assert text(llm.bind(seed=0).invoke(QUESTIONS[0])) == text(llm.invoke(QUESTIONS[0], seed=0))


@pytest.mark.parametrize("place", ["constructor", "call", "bind", "call over constructor"])
@both
async def test_a_stop_string_holds_from_every_place_on_every_path(
    watched_engine: Engine, stop_case: tuple[str, str], question: str, model: Model, place: str
) -> None:
    stop, expected = stop_case
    in_constructor = {"constructor": [stop], "call over constructor": ["never said"]}.get(place)
    llm: Any = model(engine=watched_engine, max_tokens=12, stop=in_constructor)
    llm = llm.bind(stop=[stop]) if place == "bind" else llm
    in_call = {"stop": [stop]} if place.startswith("call") else {}
    assert [*map(text, await six_ways(llm, question, **in_call))] == [expected] * 6


@both
async def test_n_answers_use_consecutive_seeds_and_come_best_first(engine: Engine, model: Model) -> None:
    """Shorter is better: a reward that tells random texts apart."""
    brief = Engine(model=engine.model, reward=FixedReward(lambda r: -float(len(r.text))), strategy=Greedy())
    llm = model(engine=brief, max_tokens=5, temperature=2.0, seed=4, n=3)
    sampling = Sampling(max_tokens=5, temperature=2.0)
    singles = [brief.generate(QUESTIONS[0], seed=4 + i, sampling=sampling).text for i in range(3)]
    [answers] = llm.generate_prompt([llm._convert_input(QUESTIONS[0])]).generations
    assert [answer.text for answer in answers] == sorted(singles, key=len)
    assert [*map(text, await six_ways(llm, QUESTIONS[0]))] == [answers[0].text] * 6


class Heard(BaseCallbackHandler):
    """The tokens that a callback handler is told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        assert kwargs["chunk"].text == token
        self.tokens.append(token)


@both
async def test_callbacks_hear_every_chunk_of_a_stream_once_and_none_of_a_call(
    watched_engine: Engine, question: str, model: Model
) -> None:
    llm = model(engine=watched_engine, max_tokens=12)
    plain, stream, astream = Heard(), Heard(), Heard()
    whole = text(llm.invoke(question, {"callbacks": [plain]}))
    chunks = [*map(text, llm.stream(question, {"callbacks": [stream]}))]
    achunks = [text(chunk) async for chunk in llm.astream(question, {"callbacks": [astream]})]
    assert plain.tokens == []
    assert stream.tokens == chunks == achunks == astream.tokens
    assert len(chunks) > 2
    assert "".join(chunks) == whole


# ── threads, cancellation, interrupts ─────────────────────────────────────────────────────────────────────────────


@both
async def test_the_loop_stays_free_and_steps_keep_one_thread_and_the_callers_context(
    watched_engine: Engine, backend: Any, drip: Any, task: Any, question: str, ticks_during: Any, model: Model
) -> None:
    """Each of at least 3 rollouts sleeps 30 ms; a blocked loop would tick at most once between rollouts."""
    backend.seconds = 0.03
    llm = model(engine=watched_engine, max_tokens=12)

    async def streams() -> None:
        async def one() -> None:
            async for _ in llm.astream(question):
                await asyncio.to_thread(lambda: None)

        task.set("mine")
        await asyncio.gather(one(), one(), llm.ainvoke(question))

    assert await ticks_during(streams()) > 2 * 3
    assert threading.get_ident() not in drip.threads
    assert len(drip.threads) == 1
    assert backend.most_inside == 1
    assert "mine" in drip.tasks


@both
async def test_callers_never_meet_inside_the_engine_and_what_waits_is_one_batch(
    watched_engine: Engine, backend: Any, model: Model
) -> None:
    llm = model(engine=watched_engine, max_tokens=6)
    questions = [f"What is {i} + 4?" for i in range(6)]
    alone = [text(llm.invoke(question)) for question in questions]
    one_by_one = backend.calls
    backend.reset()
    backend.seconds = 0.003
    awaited = await asyncio.gather(*(llm.ainvoke(question) for question in questions))
    assert backend.calls < one_by_one / 2
    in_threads = await asyncio.gather(*(asyncio.to_thread(llm.invoke, question) for question in questions))
    assert [*map(text, awaited)] == [*map(text, in_threads)] == alone
    assert backend.most_inside == 1


@both
async def test_a_stream_left_early_stops_the_engine(
    watched_engine: Engine, backend: Any, question: str, model: Model
) -> None:
    llm = model(engine=watched_engine, max_tokens=16)
    stream: Any = llm.astream(question)
    async for _ in stream:
        break
    await stream.aclose()
    for _ in llm.stream(question):
        break
    await asyncio.sleep(0.05)
    assert backend.calls == 2 * 2, "a whole answer takes eight each"


@pytest.mark.parametrize("path", ["ainvoke", "abatch", "astream"])
@both
async def test_a_cancelled_task_stops_the_engine_within_one_operation(
    watched_engine: Engine, backend: Any, question: str, model: Model, path: str
) -> None:
    backend.seconds = 0.03
    strategy: Any = type(watched_engine.strategy)(tokens=1)  # type: ignore[call-arg]
    llm = model(engine=watched_engine, max_tokens=24, strategy=strategy)

    async def work() -> None:
        if path == "astream":
            async for _ in llm.astream(question):
                pass
        else:
            await (llm.ainvoke(question) if path == "ainvoke" else llm.abatch([question, question]))

    running = asyncio.create_task(work())
    while backend.calls < 2:
        await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    calls = backend.calls
    await strategy.ended()
    assert backend.calls <= calls + 1


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("path", ["invoke", "stream", "batch"])
@both
def test_ctrl_c_ends_the_chain_and_not_only_the_call(
    watched_engine: Engine, backend: Any, question: str, model: Model, path: str
) -> None:
    backend.error_at = (2, KeyboardInterrupt())
    llm: Any = model(engine=watched_engine, max_tokens=12)
    with pytest.raises(KeyboardInterrupt):
        list(getattr(llm, path)([question] if path == "batch" else question))


# ── cache, options ────────────────────────────────────────────────────────────────────────────────────────────────

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("a", "b")]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 2},
    {"seed": 1},
    {"n": 2},
    {"stop": ["x"]},
    {"temperature": 0.5},
    {"timeout": 50.0},
    {"budget": Budget(reward_calls=5)},
    {"strategy": BestOfN(n=1)},
]
OF_ITS_OWN: dict[Model, list[dict[str, Any]]] = {
    NablaLLM: [{"formatted": True}],
    ChatNabla: [
        {"logprobs": True},
        {"draft": "3"},
        {"tools": TOOLS, "tool_choice": "any"},
        {"tools": TOOLS, "tool_choice": "b"},
        {"response_format": {"type": "json_object"}},
    ],
}


@both
async def test_every_option_has_its_own_place_in_the_cache(
    engine: Engine, question: str, counted: Callable[..., list[Any]], model: Model
) -> None:
    llm = model(engine=engine, cache=InMemoryCache(), max_tokens=3, rollouts=1)
    calls = counted(engine, "submit")
    options = [*OPTIONS, *OF_ITS_OWN[model]]
    first = [text(llm.invoke(question, **o)) for o in options]
    searches = len(options) + 1  # two for n = 2
    assert len(calls) == searches
    assert [text(llm.invoke(question, **o)) for o in options] == first
    assert [*map(text, await asyncio.gather(*(llm.ainvoke(question, **o) for o in options)))] == first
    assert len(calls) == searches
    for constructed in ({"max_tokens": 2}, {"seed": 1}, {"n": 2}):
        made = model(**{"engine": engine, "cache": llm.cache, "max_tokens": 3, "rollouts": 1, **constructed})
        made.invoke(question)
    assert len(calls) == searches, "an option in the constructor is the same as one in the call"
    for stop in ("x", "y"):
        model(engine=engine, cache=llm.cache, max_tokens=3, rollouts=1, stop=[stop]).invoke(question)
    assert len(calls) == searches + 1 + (model is NablaLLM), "core keys a text model's own stop apart from a call's"


@both
async def test_an_unknown_option_is_a_type_error_on_every_path(engine: Engine, model: Model) -> None:
    llm: Any = model(engine=engine, max_tokens=1)
    for call in (
        lambda: llm.invoke("x", typo=1),
        lambda: llm.bind(typo=1).invoke("x"),
        lambda: list(llm.stream("x", typo=1)),
        lambda: llm.batch(["x"], typo=1),
    ):
        with pytest.raises(TypeError, match=r"typo.*Known: temperature"):
            call()
    for awaited in (llm.ainvoke("x", typo=1), anext(llm.astream("x", typo=1))):
        with pytest.raises(TypeError, match="typo"):
            await awaited


@both
def test_wrong_values_are_refused_in_constructor_and_call(engine: Engine, model: Model) -> None:
    with pytest.raises(ValidationError, match="typo"):
        model(typo=1)
    for wrong in ({"temperature": -1}, {"max_tokens": 0}, {"n": 0}, {"seed": -1}, {"budget": {"rollouts": 0}}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            model(**wrong)
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            model(engine=engine).invoke("x", **wrong)
    with pytest.raises(ValidationError, match="dtype: loading settings"):
        model(engine=engine, dtype="float16")
    with pytest.raises(ValidationError, match="give one"):
        model(engine=engine, model="another")
    with pytest.raises(ValidationError, match=r"expected a nabla_agents\.Engine"):
        model(engine="tiny")


# ── loading, copies, serialisation ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def loads_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Loading in a process where nothing is loaded yet; it gives the shared engine, and is recorded."""
    made: list[dict[str, Any]] = []

    def tiny(**options: Any) -> Engine:
        made.append(options)
        return engine

    monkeypatch.setattr(shared_engines, "_loaded", {})
    monkeypatch.setattr(nabla_agents.Engine, "tiny", tiny)
    return made


def test_equal_settings_load_once_and_only_when_used(loads_made: list[dict[str, Any]], question: str) -> None:
    llms = [NablaLLM(max_tokens=1, seed=i) for i in range(10)]
    assert loads_made == []
    threads = [threading.Thread(target=llm.invoke, args=(question,)) for llm in llms[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads_made == [{}]
    ChatNabla(dtype="float32").load()
    assert loads_made == [{}, {"dtype": "float32"}]


@both
def test_configured_copies_share_the_engine(
    engine: Engine, loads_made: list[dict[str, Any]], question: str, model: Model
) -> None:
    fields: Any = {"max_tokens": ConfigurableField(id="max_tokens"), "seed": ConfigurableField(id="seed")}
    given = model(engine=engine, max_tokens=4, rollouts=1).configurable_fields(**fields)
    config: Any = {"configurable": {"max_tokens": 2}}
    expected = model(engine=engine, max_tokens=2, rollouts=1).invoke(question)
    assert text(given.invoke(question, config)) == text(expected)
    assert loads_made == []
    named = model(max_tokens=1).configurable_fields(**fields)
    for seed in range(3):
        named.invoke(question, {"configurable": {"seed": seed}})
    assert len(loads_made) == 1


@both
def test_copies_and_pickles_share_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    llm = model(engine=engine, max_tokens=3, stop=["x"])
    assert copy.deepcopy(llm).engine is llm.model_copy(deep=True).engine is copy.deepcopy([llm])[0].engine is engine
    pickled = pickle.dumps(llm)
    assert len(pickled) < 5000
    assert pickle.loads(pickled) == llm
    assert pickle.loads(pickled).engine is engine
    assert pickle.loads(pickle.dumps(model(seed=4))).seed == 4
    monkeypatch.setattr(shared_engines, "_shared", {})
    with pytest.raises(ModelLoadError, match="model name instead"):
        pickle.loads(pickled)


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
@both
def test_serialised_it_holds_settings_and_no_engine(engine: Engine, model: Model) -> None:
    llm = model(model="tiny", max_tokens=5, stop=["x"], budget=Budget(rollouts=2))
    assert loads(dumps(llm), allowed_objects=[model], valid_namespaces=["langchain_nabla"]) == llm
    own = model(strategy=Nabla(direction=GradientDirection() + NoDirection()))
    assert json.loads(dumps(own))["type"] == "not_implemented", "a sum of directions is none of the parts with a name"
    given = model(engine=engine, max_tokens=5)
    assert len(repr(given)) < 900
    assert "engine" not in given.model_dump()
    assert json.loads(dumps(given))["type"] == "not_implemented", "loading it would give another reward"


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
@pytest.mark.parametrize(
    "strategy",
    [
        Greedy(),
        BestOfN(n=3, temperature=0.5),
        Nabla.paper(),
        NablaParallel(dto=MirrorDTO(kl_budget=0.1), direction=FeedbackDirection(beta=2.0)),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
@both
def test_serialised_it_keeps_its_strategy(model: Model, strategy: Any) -> None:
    llm = model(strategy=strategy)
    assert loads(dumps(llm), allowed_objects=[model], valid_namespaces=["langchain_nabla"]).strategy == strategy


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_a_strategy_that_is_read_is_one_of_ours() -> None:
    text = dumps(ChatNabla(strategy=Greedy())).replace('"Greedy"', '"Engine"')
    with pytest.raises(ValidationError, match="kind 'Engine'"):
        loads(text, allowed_objects=[ChatNabla], valid_namespaces=["langchain_nabla"])


def test_chat_and_text_models_share_an_engine(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=5)
    assert llm.as_chat().engine is ChatNabla(llm=llm).engine is engine
    assert llm.as_chat(max_tokens=2).max_tokens == 2
    assert llm.as_chat().invoke(question).content == llm.invoke(question)


@both
def test_tokens_are_counted_by_the_models_tokenizer(engine: Engine, question: str, model: Model) -> None:
    llm = model(engine=engine)
    assert llm.get_num_tokens(question) == len(engine.model.tokenizer.encode(question))
    assert model(engine=engine, custom_get_token_ids=lambda text: [0]).get_num_tokens(question) == 1
