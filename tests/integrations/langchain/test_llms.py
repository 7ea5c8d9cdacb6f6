"""`langchain_nabla.NablaLLM`. Texts are compared between paths, never with literals: the weights may change."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

import nabla_agents
from langchain_nabla import NablaLLM
from langchain_nabla._call import best_first
from langchain_nabla._identity import described
from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    CommittedText,
    ContextOverflowError,
    Engine,
    FinishReason,
    Greedy,
    ModelLoadError,
    NablaError,
    PromptError,
    Result,
    Reward,
    Rollout,
    Score,
    Step,
    Usage,
    shared,
)

QUESTIONS = [
    "Tom has 3 boxes with 4 apples each. He eats 5 apples. How many apples are left?",
    "Ann has 7 pens and buys 5 more. How many pens does she have?",
    "What is 12 * 7 + 9?",
]


async def six_ways(llm: NablaLLM, prompt: str, **kwargs: Any) -> list[str]:
    """invoke, stream, batch, ainvoke, astream, abatch."""
    return [
        llm.invoke(prompt, **kwargs),
        "".join(llm.stream(prompt, **kwargs)),
        *llm.batch([prompt], **kwargs),
        await llm.ainvoke(prompt, **kwargs),
        "".join([chunk async for chunk in llm.astream(prompt, **kwargs)]),
        *await llm.abatch([prompt], **kwargs),
    ]


# ── one text on every path ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"strategy": BestOfN(n=2), "seed": 1}])
async def test_six_paths_give_the_text_of_the_engine(engine: Engine, options: dict[str, Any]) -> None:
    llm = NablaLLM(engine=engine, max_tokens=6, **options)
    sampling = nabla_agents.Sampling(max_tokens=6, temperature=options.get("temperature"))
    expected = engine.generate(
        QUESTIONS[0], seed=options.get("seed", 0), sampling=sampling, strategy=options.get("strategy")
    )
    assert await six_ways(llm, QUESTIONS[0]) == [expected.text] * 6
    assert llm.bind(seed=0).invoke(QUESTIONS[0]) == llm.invoke(QUESTIONS[0], seed=0)


async def test_a_batch_is_one_engine_batch_and_equals_single_calls(engine: Engine, widths: list[int]) -> None:
    llm = NablaLLM(engine=engine, max_tokens=8, seed=5, temperature=0.9)
    texts = llm.batch(QUESTIONS)
    assert widths[0] == len(QUESTIONS)
    widths.clear()
    assert await llm.abatch(QUESTIONS) == texts
    assert widths[0] == len(QUESTIONS)
    assert texts == [llm.invoke(question) for question in QUESTIONS]


async def test_one_bad_prompt_of_a_batch_fails_alone(engine: Engine, widths: list[int]) -> None:
    llm = NablaLLM(engine=engine, max_tokens=4)
    prompts = [QUESTIONS[0], "x " * engine.model.context_length, QUESTIONS[1]]
    expected = llm.batch([prompts[0], prompts[2]])
    tagged: Any = [{"tags": [str(i)]} for i in range(3)]
    found: Any = [
        llm.batch(prompts, tagged, return_exceptions=True),
        await llm.abatch(prompts, return_exceptions=True),
    ]
    for first, bad, last in found:
        assert [first, last] == expected
        assert isinstance(bad, ContextOverflowError)
    assert max(widths) == 2, "those that can be answered are one batch"
    widths.clear()
    with pytest.raises(ContextOverflowError):
        llm.batch(prompts)
    assert widths == [], "nothing is computed before all are known to be good"


@pytest.mark.parametrize("place", ["constructor", "call", "bind", "call over constructor"])
async def test_a_stop_string_holds_from_every_place_on_every_path(
    watched_engine: Engine, stop_case: tuple[str, str], question: str, place: str
) -> None:
    stop, expected = stop_case
    in_constructor = {"constructor": [stop], "call over constructor": ["never said"]}.get(place)
    llm: Any = NablaLLM(engine=watched_engine, max_tokens=12, stop=in_constructor)
    if place == "bind":
        llm = llm.bind(stop=[stop])
    in_call = {"stop": [stop]} if place.startswith("call") else {}
    assert await six_ways(llm, question, **in_call) == [expected] * 6


async def test_a_prompt_is_one_user_turn_unless_formatted(watched_engine: Engine, backend: Any) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=1)
    await six_ways(llm, "Hello")
    assert set(backend.prompts) == {watched_engine.prompt("Hello").text} != {"Hello"}
    backend.reset()
    await six_ways(llm, "Hello", formatted=True)
    assert set(backend.prompts) == {"Hello"}


def test_a_prompt_is_verbatim_for_a_model_without_chat_template(
    watched_engine: Engine, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_engine.model.tokenizer.hf, "chat_template", None)
    NablaLLM(engine=watched_engine, max_tokens=1).invoke("Hello")
    assert backend.prompts == ["Hello"]


def test_it_works_in_a_chain(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=4)
    chain = PromptTemplate.from_template("{question}") | llm | StrOutputParser()
    assert chain.invoke({"question": question}) == llm.invoke(question)
    assert "".join(chain.stream({"question": question})) == llm.invoke(question)


# ── several answers ───────────────────────────────────────────────────────────────────────────────────────────────


class Brevity(Reward):
    """Shorter is better: a reward that tells random texts apart."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(-float(len(r.text)), usage=Usage(reward_calls=1)) for r in rollouts]


async def test_n_answers_use_consecutive_seeds_and_come_best_first(engine: Engine) -> None:
    brief = Engine(model=engine.model, reward=Brevity(), strategy=Greedy())
    llm = NablaLLM(engine=brief, max_tokens=5, temperature=2.0, seed=4, n=3)
    sampling = nabla_agents.Sampling(max_tokens=5, temperature=2.0)
    singles = [brief.generate(QUESTIONS[0], seed=4 + i, sampling=sampling).text for i in range(3)]
    (answers,) = llm.generate([QUESTIONS[0]]).generations
    assert [answer.text for answer in answers] == sorted(singles, key=len)
    assert await six_ways(llm, QUESTIONS[0]) == [answers[0].text] * 6


def test_what_could_not_be_judged_comes_last_and_no_reward_means_likelihood() -> None:
    def result(text: str, score: float | None, log_likelihood: float) -> Result:
        judged = None if score is None else Score(score)
        return Result(text, (), judged, FinishReason.STOP, Usage(), log_likelihood=log_likelihood)

    nan = float("nan")
    scored = [result("unjudged", nan, -1.0), result("low", -2.0, -1.0), result("high", 3.0, -9.0)]
    assert [r.text for r in best_first(scored)] == ["high", "low", "unjudged"]
    unscored = [result("unlikely", None, -5.0), result("likely", None, -1.0)]
    assert [r.text for r in best_first(unscored)] == ["likely", "unlikely"]


# ── streaming ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Tokens(BaseCallbackHandler):
    """What a callback handler is told."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[Any] = []
        self.started: list[dict[str, Any]] = []
        self.errors = 0

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        self.started.append({"serialized": serialized, **kwargs})

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        assert kwargs["chunk"].text == token
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors += 1


async def test_callbacks_hear_every_chunk_of_a_stream_once_and_none_of_a_call(
    watched_engine: Engine, question: str
) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=12)
    plain, stream, astream = Tokens(), Tokens(), Tokens()
    text = llm.invoke(question, {"callbacks": [plain]})
    chunks = list(llm.stream(question, {"callbacks": [stream]}))
    achunks = [chunk async for chunk in llm.astream(question, {"callbacks": [astream]})]
    assert plain.tokens == []
    assert stream.tokens == chunks == achunks == astream.tokens
    assert len(chunks) > 2
    assert "".join(chunks) == text


async def test_the_end_of_a_stream_carries_what_a_call_returns(watched_engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=12)
    handlers = Tokens(), Tokens(), Tokens()
    llm.invoke(question, {"callbacks": [handlers[0]]})
    list(llm.stream(question, {"callbacks": [handlers[1]]}))
    async for _ in llm.astream(question, {"callbacks": [handlers[2]]}):
        pass
    infos = [handler.results[0].generations[0][0].generation_info for handler in handlers]
    for info in infos:
        for measured in ("seconds", "peak_memory_bytes"):
            assert info["nabla"]["usage"].pop(measured) > 0
    assert infos[0] == infos[1] == infos[2]


def test_a_strategy_that_takes_back_committed_text_is_an_error() -> None:
    text = CommittedText()
    committed = ["", "a", "a", "ab c", "ab cd"]
    assert [text.added_by(Step("refine", c)) for c in committed] == ["", "a", "", "b c", "d"]
    with pytest.raises(NablaError, match="took back"):
        text.added_by(Step("commit", "ab", done=True))


# ── threads, cancellation, interrupts ─────────────────────────────────────────────────────────────────────────────


async def test_the_loop_stays_free_and_steps_keep_one_thread_and_the_callers_context(
    watched_engine: Engine, backend: Any, drip: Any, task: Any, question: str, ticks_during: Callable[..., Any]
) -> None:
    """Each of at least 3 rollouts sleeps 30 ms; a blocked loop would tick at most once between rollouts."""
    backend.seconds = 0.03
    llm = NablaLLM(engine=watched_engine, max_tokens=12)

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


async def test_eight_callers_never_meet_inside_the_engine_and_each_gets_its_own_answer(
    watched_engine: Engine, backend: Any
) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=6)
    questions = [f"What is {i} + 4?" for i in range(8)]
    alone = [llm.invoke(question) for question in questions]
    backend.reset()
    backend.seconds = 0.003
    streams = ["".join([chunk async for chunk in llm.astream(question)]) for question in questions[:1]]
    awaited = await asyncio.gather(*(llm.ainvoke(question) for question in questions))
    in_threads = await asyncio.gather(*(asyncio.to_thread(llm.invoke, question) for question in questions))
    assert list(awaited) == list(in_threads) == alone
    assert streams == alone[:1]
    assert backend.most_inside == 1


async def test_a_stream_left_early_stops_the_engine(watched_engine: Engine, backend: Any, question: str) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=16)
    whole = len(list(llm.stream(question)))
    full = backend.calls
    backend.reset()
    stream = llm.astream(question)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    for _ in llm.stream(question):
        break
    await asyncio.sleep(0.05)
    assert whole > 2
    assert backend.calls == 2 * 2 < 2 * full


@pytest.mark.parametrize("path", ["ainvoke", "abatch", "astream"])
async def test_a_cancelled_task_stops_the_engine_within_one_operation(
    watched_engine: Engine, backend: Any, question: str, path: str
) -> None:
    backend.seconds = 0.03
    strategy: Any = type(watched_engine.strategy)(tokens=1)
    llm = NablaLLM(engine=watched_engine, max_tokens=24, strategy=strategy)

    async def work() -> None:
        if path == "ainvoke":
            await llm.ainvoke(question)
        elif path == "abatch":
            await llm.abatch([question, question])
        else:
            async for _ in llm.astream(question):
                pass

    task = asyncio.create_task(work())
    while backend.calls < 2:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    calls = backend.calls
    await strategy.ended()
    assert backend.calls <= calls + 1


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("path", ["invoke", "stream", "batch"])
def test_ctrl_c_ends_the_chain_and_not_only_the_call(
    watched_engine: Engine, backend: Any, question: str, path: str
) -> None:
    backend.error_at = (2, KeyboardInterrupt())
    llm = NablaLLM(engine=watched_engine, max_tokens=12)
    calls = {
        "invoke": lambda: llm.invoke(question),
        "stream": lambda: list(llm.stream(question)),
        "batch": lambda: llm.batch([question]),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[path]()


# ── cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_option_has_its_own_place_in_the_cache(engine: Engine, question: str, counted: Any) -> None:
    cache = InMemoryCache()
    llm = NablaLLM(engine=engine, cache=cache, max_tokens=3, rollouts=1)
    calls = counted(engine, "submit")
    options: list[dict[str, Any]] = [
        {},
        {"max_tokens": 2},
        {"seed": 1},
        {"n": 2},
        {"stop": ["x"]},
        {"temperature": 0.5},
        {"budget": Budget(reward_calls=5)},
        {"strategy": BestOfN(n=1)},
        {"formatted": True},
    ]
    first = [llm.invoke(question, **o) for o in options]
    searches = len(options) + 1  # two for n = 2
    assert len(calls) == searches
    assert [llm.invoke(question, **o) for o in options] == first
    assert list(await asyncio.gather(*(llm.ainvoke(question, **o) for o in options))) == first
    assert len(calls) == searches
    for constructed in ({"max_tokens": 2}, {"seed": 1}, {"n": 2}):
        NablaLLM(**{"engine": engine, "cache": cache, "max_tokens": 3, "rollouts": 1, **constructed}).invoke(question)
    assert len(calls) == searches, "an option in the constructor is the same as one in the call"
    NablaLLM(engine=engine, cache=cache, max_tokens=3, rollouts=1, stop=["x"]).invoke(question)
    NablaLLM(engine=engine, cache=cache, max_tokens=3, rollouts=1, stop=["y"]).invoke(question)
    assert len(calls) == searches + 2


async def test_concurrent_calls_do_not_mix_their_options(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, cache=InMemoryCache(), rollouts=1)
    expected = [llm.invoke(question, max_tokens=n) for n in (1, 2, 3)]
    assert len(set(expected)) == 3
    fresh = NablaLLM(engine=engine, cache=InMemoryCache(), rollouts=1)
    assert await asyncio.gather(*(fresh.ainvoke(question, max_tokens=n) for n in (1, 2, 3))) == expected


def test_engines_are_told_apart_by_their_parts_and_not_by_their_addresses(engine: Engine) -> None:
    def key(**parts: Any) -> str:
        options = {"model": engine.model, "reward": ArithmeticSteps(), "strategy": Greedy(), **parts}
        return json.dumps(NablaLLM(engine=Engine(**options))._identifying_params)

    keys = [
        key(),
        key(reward=ArithmeticSteps(credit=3.0)),
        key(reward=2.0 * ArithmeticSteps()),
        key(reward=None),
        key(strategy=BestOfN(n=2)),
        key(strategy=BestOfN(n=3)),
        key(budget=Budget(rollouts=2)),
        key(likelihood_weight=0.5),
        key(embedding_terms=False),
    ]
    assert key() == keys[0]
    assert len(set(keys)) == len(keys)
    assert NablaLLM()._identifying_params != NablaLLM(dtype="bfloat16")._identifying_params
    assert " at 0x" not in "".join(keys)


def test_a_part_with_unknown_innards_is_described_without_an_address() -> None:
    assert described(threading.Lock()) == {"kind": "_thread.lock"}
    assert described(Greedy) == f"{Greedy.__module__}.Greedy"
    assert described({"a": (1, None)}) == {"a": [1, None]}


def test_callbacks_see_the_options_of_the_call(engine: Engine, question: str) -> None:
    handler = Tokens()
    llm = NablaLLM(engine=engine, max_tokens=2, rollouts=1)
    llm.bind(max_tokens=1).invoke(question, {"callbacks": [handler]})
    (started,) = handler.started
    assert started["invocation_params"]["settings"]["max_tokens"] == 1
    assert len(json.dumps(started["serialized"])) < 1000


# ── usage ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_usage_is_the_engines_and_json(engine: Engine) -> None:
    llm = NablaLLM(engine=engine, max_tokens=6)
    output = llm.generate(QUESTIONS)
    json.dumps([output.llm_output, [g[0].generation_info for g in output.generations]], allow_nan=False)
    sampling = nabla_agents.Sampling(max_tokens=6)
    results = engine.generate_batch(QUESTIONS, seeds=[0, 0, 0], sampling=sampling)
    infos = [answers[0].generation_info or {} for answers in output.generations]
    for info, result in zip(infos, results, strict=True):
        tokens = result.prompt_tokens, len(result.token_ids)
        assert tuple(info["token_usage"].values()) == (*tokens, sum(tokens))
        assert info["nabla"]["usage"]["rollouts"] == result.usage.rollouts
        assert info["nabla"]["finish_reason"] == result.finish_reason.value
        assert info["finish_reason"] in ("stop", "length")
    summed = {name: sum(info["token_usage"][name] for info in infos) for name in infos[0]["token_usage"]}
    assert output.llm_output is not None
    assert output.llm_output["token_usage"] == summed
    assert output.llm_output["model_name"] == engine.model.name


def test_tokens_are_counted_by_the_models_tokenizer(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine)
    assert llm.get_num_tokens(question) == len(engine.model.tokenizer.encode(question))
    assert NablaLLM(engine=engine, custom_get_token_ids=lambda text: [0]).get_num_tokens(question) == 1


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_call_option_is_a_type_error_on_every_path(engine: Engine) -> None:
    llm = NablaLLM(engine=engine, max_tokens=1)
    for call in (llm.invoke, llm.bind(typo=1).invoke, lambda p, **k: list(llm.stream(p, **k))):
        with pytest.raises(TypeError, match=r"typo.*Known: temperature"):
            call("x", typo=1)
    with pytest.raises(TypeError, match="typo"):
        llm.batch(["x"], typo=1)
    with pytest.raises(TypeError, match="typo"):
        await llm.ainvoke("x", typo=1)
    with pytest.raises(TypeError, match="typo"):
        await anext(llm.astream("x", typo=1))


def test_wrong_values_are_refused_in_constructor_and_call(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="typo"):
        NablaLLM(typo=1)  # type: ignore[call-arg]
    for wrong in ({"temperature": -1}, {"max_tokens": 0}, {"n": 0}, {"seed": -1}, {"budget": {"rollouts": 0}}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            NablaLLM(**wrong)  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            NablaLLM(engine=engine).invoke("x", **wrong)


def test_an_engine_excludes_loading_settings_and_another_model(engine: Engine) -> None:
    with pytest.raises(ValidationError, match="dtype: loading settings"):
        NablaLLM(engine=engine, dtype="float16")
    with pytest.raises(ValidationError, match="give one"):
        NablaLLM(engine=engine, model="another")
    with pytest.raises(ValidationError, match=r"expected a nabla_agents\.Engine"):
        NablaLLM(engine="tiny")


def test_an_impossible_prompt_is_the_engines_error(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=1)
    handler = Tokens()
    with pytest.raises(PromptError, match="empty"):
        llm.invoke(" ", {"callbacks": [handler]})
    assert handler.errors == 1
    with pytest.raises(PromptError, match="empty"):
        llm.batch([question, ""])
    with pytest.raises(ContextOverflowError):
        llm.invoke("word " * 2 * engine.model.context_length)


# ── loading, copies, serialisation ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def loads_made(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Loading in a process where nothing is loaded yet; it gives the shared engine, and is recorded."""
    made: list[dict[str, Any]] = []

    def tiny(**options: Any) -> Engine:
        made.append(options)
        return engine

    monkeypatch.setattr(shared, "_loaded", {})
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
    NablaLLM(dtype="float32").load()
    assert loads_made == [{}, {"dtype": "float32"}]


def test_configured_copies_share_the_engine(engine: Engine, loads_made: list[dict[str, Any]], question: str) -> None:
    fields = {"max_tokens": ConfigurableField(id="max_tokens"), "seed": ConfigurableField(id="seed")}
    given = NablaLLM(engine=engine, max_tokens=4, rollouts=1).configurable_fields(**fields)
    config: Any = {"configurable": {"max_tokens": 2}}
    assert given.invoke(question, config) == NablaLLM(engine=engine, max_tokens=2, rollouts=1).invoke(question)
    assert loads_made == []
    named = NablaLLM(max_tokens=1).configurable_fields(**fields)
    for seed in range(3):
        named.invoke(question, {"configurable": {"seed": seed}})
    assert len(loads_made) == 1


def test_copies_and_pickles_share_the_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = NablaLLM(engine=engine, max_tokens=3, stop=["x"])
    assert copy.deepcopy(llm).engine is llm.model_copy(deep=True).engine is copy.deepcopy([llm])[0].engine is engine
    pickled = pickle.dumps(llm)
    assert len(pickled) < 5000
    assert pickle.loads(pickled) == llm
    assert pickle.loads(pickled).engine is engine
    assert pickle.loads(pickle.dumps(NablaLLM(seed=4))).seed == 4
    monkeypatch.setattr(shared, "_shared", {})
    with pytest.raises(ModelLoadError, match="model name instead"):
        pickle.loads(pickled)


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_serialised_it_holds_settings_and_no_engine(engine: Engine) -> None:
    llm = NablaLLM(model="tiny", max_tokens=5, stop=["x"], budget=Budget(rollouts=2))
    assert loads(dumps(llm), allowed_objects=[NablaLLM], valid_namespaces=["langchain_nabla"]) == llm
    given = NablaLLM(engine=engine, max_tokens=5)
    assert len(repr(given)) < 300
    assert "engine" not in given.model_dump()
    assert json.loads(dumps(given))["type"] == "not_implemented", "loading it would give another reward"


def test_importing_and_constructing_need_no_torch() -> None:
    script = (
        "import sys; from langchain_nabla import NablaLLM, __version__; import langchain_nabla.llms as m\n"
        "assert m.NablaLLM is NablaLLM and NablaLLM(seed=1)._llm_type == 'nabla-llm'\n"
        "print(*{'torch', 'transformers', 'llama_index'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
