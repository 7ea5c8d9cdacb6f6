"""`langchain_nabla.NablaLLM`. Texts are compared between paths, never with literals: the weights may change."""

import asyncio
import json
import threading
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

import nabla_agents
from langchain_nabla import NablaLLM
from langchain_nabla._call import best_first
from langchain_nabla._identity import described
from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    ContextOverflowError,
    Engine,
    FinishReason,
    Greedy,
    PromptError,
    Result,
    Score,
    Usage,
)

from .conftest import six_ways

QUESTIONS = [
    "Tom has 3 boxes with 4 apples each. He eats 5 apples. How many apples are left?",
    "Ann has 7 pens and buys 5 more. How many pens does she have?",
    "What is 12 * 7 + 9?",
]


# ── one text on every path ────────────────────────────────────────────────────────────────────────────────────────


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


class Heard(BaseCallbackHandler):
    """What a callback handler is told."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.started: list[dict[str, Any]] = []
        self.errors = 0

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        self.started.append({"serialized": serialized, **kwargs})

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors += 1


async def test_the_end_of_a_stream_carries_what_a_call_returns(watched_engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=watched_engine, max_tokens=12)
    handlers = Heard(), Heard(), Heard()
    llm.invoke(question, {"callbacks": [handlers[0]]})
    list(llm.stream(question, {"callbacks": [handlers[1]]}))
    async for _ in llm.astream(question, {"callbacks": [handlers[2]]}):
        pass
    infos = [handler.results[0].generations[0][0].generation_info for handler in handlers]
    for info in infos:
        for measured in ("seconds", "peak_memory_bytes"):
            assert info["nabla"]["usage"].pop(measured) > 0
    assert infos[0] == infos[1] == infos[2]


# ── cache ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    handler = Heard()
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


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_impossible_prompt_is_the_engines_error(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=1)
    handler = Heard()
    with pytest.raises(PromptError, match="empty"):
        llm.invoke(" ", {"callbacks": [handler]})
    assert handler.errors == 1
    with pytest.raises(PromptError, match="empty"):
        llm.batch([question, ""])
    with pytest.raises(ContextOverflowError):
        llm.invoke("word " * 2 * engine.model.context_length)
