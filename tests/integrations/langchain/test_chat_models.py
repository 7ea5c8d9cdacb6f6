"""`langchain_nabla.ChatNabla`: what LangChain's own suites do not ask."""

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypedDict

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

from langchain_nabla import ChatNabla, NablaLLM, _messages
from langchain_nabla._messages import conversation
from nabla_agents import (
    BestOfN,
    Budget,
    CommittedReply,
    ConfigurationError,
    Engine,
    GrammarError,
    Greedy,
    Message,
    PromptError,
    Sampling,
    Step,
)
from nabla_agents.search.positions import free_positions
from nabla_agents.testing import FixedReward

from .conftest import call

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        },
    }
    for name in ("first", "second")
]


class Pet(BaseModel):
    """A pet."""

    name: str
    age: int


class PetDict(TypedDict):
    """A pet."""

    name: str
    age: int


FIRST = call("first", '{"x": 3}')
SECOND = call("second", '{"x": -4}')
PET = '{"name": "Mia", "age": 3}'


def merged(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


async def six_ways(llm: Any, prompt: Any, **kwargs: Any) -> list[BaseMessage]:
    """invoke, stream, batch, ainvoke, astream, abatch."""
    return [
        llm.invoke(prompt, **kwargs),
        merged(list(llm.stream(prompt, **kwargs))),
        *llm.batch([prompt], **kwargs),
        await llm.ainvoke(prompt, **kwargs),
        merged([chunk async for chunk in llm.astream(prompt, **kwargs)]),
        *await llm.abatch([prompt], **kwargs),
    ]


def said(message: BaseMessage) -> Any:
    """What must be the same on every path."""
    assert isinstance(message, AIMessage)
    nabla = copy.deepcopy(message.response_metadata["nabla"])
    for measured in ("seconds", "peak_memory_bytes"):
        nabla["usage"].pop(measured)
    rest = {k: message.response_metadata[k] for k in ("finish_reason", "model_name", "model_provider")}
    blocks = [{k: v for k, v in block.items() if k != "index"} for block in message.content_blocks]
    return (message.text, message.tool_calls, message.usage_metadata, blocks, nabla, rest)


# ── one message on every path ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("output_version", [None, "v1"])
@pytest.mark.parametrize(
    "text",
    [
        "Hello — 你好 🙂, how are you?",
        f"I look.\n{FIRST}\n{SECOND}",
        f"<think>\n3 < 4, so\n</think>\n\n{FIRST}",
        f"<think>\n3 < 4, so\n</think>\n\nI look.\n{FIRST}\n{SECOND}",
        "<think>\nhm\n</think>\n\nYes.",
    ],
)
async def test_six_paths_give_one_message(scripted: Any, spelling: Any, text: str, output_version: str | None) -> None:
    engine = scripted(lambda prompt: text, strategy=spelling)
    llm = ChatNabla(engine=engine, output_version=output_version).bind_tools(TOOLS)
    chunks = list(llm.stream("x"))
    messages = await six_ways(llm, "x")
    assert [said(m) for m in messages] == [said(messages[0])] * 6
    assert len(chunks) > 1, "the stream is one chunk"
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last"
    expected_calls = [c["args"] for c in messages[0].tool_calls]  # type: ignore[attr-defined]
    assert expected_calls == [{"x": 3}] * (FIRST in text) + [{"x": -4}] * (SECOND in text)
    reasoning = [b["reasoning"] for b in messages[0].content_blocks if b["type"] == "reasoning"]
    assert "".join(reasoning) == text.partition("</think>")[0].removeprefix("<think>").strip() * ("think" in text)


async def test_the_text_is_that_of_the_engine(engine: Engine, question: str) -> None:
    llm = ChatNabla(engine=engine, max_tokens=8, temperature=1.0, seed=3)
    expected = engine.generate(question, seed=3, sampling=Sampling(max_tokens=8, temperature=1.0))
    messages = await six_ways(llm, question)
    assert [m.text for m in messages] == [expected.text] * 6
    assert NablaLLM(engine=engine, max_tokens=8, temperature=1.0, seed=3).invoke(question) == expected.text


@pytest.mark.parametrize("place", ["constructor", "call", "bind", "call over constructor"])
async def test_a_stop_string_holds_from_every_place_on_every_path(
    watched_engine: Engine, stop_case: tuple[str, str], question: str, place: str
) -> None:
    stop, expected = stop_case
    in_constructor = {"constructor": [stop], "call over constructor": ["never said"]}.get(place)
    llm: Any = ChatNabla(engine=watched_engine, max_tokens=12, stop=in_constructor)
    llm = llm.bind(stop=[stop]) if place == "bind" else llm
    in_call = {"stop": [stop]} if place.startswith("call") else {}
    assert [m.content for m in await six_ways(llm, question, **in_call)] == [expected] * 6


# ── tools ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("any", {"first"}),
        ("required", {"first"}),
        (True, {"first"}),
        ("second", {"second"}),
        ({"type": "function", "function": {"name": "second"}}, {"second"}),
        ({"type": "tool", "name": "second"}, {"second"}),
        ("auto", set()),
        (None, set()),
        ("none", set()),
        (False, set()),
    ],
)
def test_tool_choice_is_enforced_against_the_models_will(scripted: Any, choice: Any, names: set[str]) -> None:
    """The script never calls a tool by itself."""
    llm = ChatNabla(engine=scripted(lambda prompt: "I would rather talk."), max_tokens=80)
    message = llm.bind_tools(TOOLS, tool_choice=choice, parallel_tool_calls=False).invoke("x")
    assert {c["name"] for c in message.tool_calls} == names
    assert all(isinstance(c["args"]["x"], int) for c in message.tool_calls)
    assert message.content == ("" if names else "I would rather talk.")


def test_a_choice_of_nothing_or_of_the_unknown_is_refused(engine: Engine) -> None:
    llm = ChatNabla(engine=engine)
    for tools, choice in ((TOOLS, "third"), ([], "any"), (TOOLS, 3)):
        with pytest.raises(ConfigurationError, match="tool_choice"):
            llm.bind_tools(tools, tool_choice=choice)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="response_format"):
        llm.invoke("x", response_format={"type": "xml"})
    with pytest.raises(GrammarError):
        llm.invoke("x", response_format={"type": "json_object", "schema": {"type": "nope"}})


def test_the_model_reads_of_its_tools_and_of_what_they_returned(scripted: Any) -> None:
    prompts: list[str] = []
    llm = ChatNabla(engine=scripted(lambda prompt: prompts.append(prompt) or "ok"))
    asked = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "3 + 4?"}]),
        AIMessage("", tool_calls=[{"name": "first", "args": {"x": 3}, "id": "1"}]),
        ToolMessage("no such number", tool_call_id="1", status="error"),
    ]
    llm.bind_tools(TOOLS).invoke(asked)
    for part in ("Be brief.", '"name": "first"', '"name": "second"', '{"x": 3}', "Error: no such number"):
        assert part in prompts[-1]
    llm.bind_tools(TOOLS, tool_choice="none").invoke("x")
    assert "second" not in prompts[-1]
    counted = llm.get_num_tokens_from_messages(asked, tools=TOOLS)
    assert counted == llm.bind_tools(TOOLS).invoke(asked).usage_metadata["input_tokens"]


def test_what_is_no_text_is_refused_and_thoughts_are_left_out() -> None:
    blocks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, "b"]
    assert conversation([AIMessage(blocks)]) == [Message("assistant", "a\nb")]
    with pytest.raises(PromptError, match="image_url"):
        conversation([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])


def test_a_call_cut_short_is_closed_and_a_broken_one_is_invalid(scripted: Any) -> None:
    endless = call("first", '{"x": ' + "1" * 500)
    cut = ChatNabla(engine=scripted(lambda prompt: endless), max_tokens=70).bind_tools(TOOLS, tool_choice="any")
    assert cut.invoke("x").tool_calls
    replies = CommittedReply(cut.bound.load().prompt("x"), 0, tools=True)  # type: ignore[attr-defined]
    message = _messages.message(replies.read("Well. <tool_call>\n{broken\n</tool_call>"), replies)
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["args"] == "{broken"
    assert "No JSON" in (message.invalid_tool_calls[0]["error"] or "")


def test_call_ids_differ_between_turns_and_not_between_paths(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(lambda prompt: f"{FIRST}\n{FIRST}"))
    bound = llm.bind_tools(TOOLS)
    ids = [c["id"] for c in bound.invoke("a").tool_calls]
    assert ids == [c["id"] for c in merged(list(bound.stream("a"))).tool_calls]
    assert len({*ids, *(c["id"] for c in bound.invoke("b").tool_calls)}) == 4


# ── structured output ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Pet, PetDict, Pet.model_json_schema()])
async def test_an_answer_is_an_object_of_the_schema(scripted: Any, method: Any, schema: Any) -> None:
    script: Callable[[str], str] = lambda prompt: call("Pet", PET) if "# Tools" in prompt else PET  # noqa: E731
    script = script if schema is not PetDict else lambda prompt: call("PetDict", PET) if "# Tools" in prompt else PET
    llm = ChatNabla(engine=scripted(script)).with_structured_output(schema, method=method)
    expected = Pet(name="Mia", age=3) if schema is Pet else {"name": "Mia", "age": 3}
    assert llm.invoke("x") == await llm.ainvoke("x") == expected
    assert list(llm.stream("x"))[-1] == expected


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_model_that_knows_no_json_answers_in_it_all_the_same(engine: Engine, method: Any) -> None:
    pet = ChatNabla(engine=engine, max_tokens=90).with_structured_output(Pet, method=method).invoke("Which pet?")
    assert isinstance(pet, Pet)


def test_the_raw_message_comes_along_and_an_error_is_told(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(lambda prompt: PET))
    got = llm.with_structured_output(Pet, include_raw=True).invoke("x")
    assert (got["parsed"], got["parsing_error"]) == (Pet(name="Mia", age=3), None)
    assert got["raw"].content == PET
    cut = ChatNabla(engine=llm.engine, stop=["age"])
    failed = cut.with_structured_output(Pet, include_raw=True).invoke("x")
    assert failed["parsed"] is None
    assert failed["parsing_error"] is not None
    with pytest.raises(ConfigurationError, match="method"):
        llm.with_structured_output(Pet, method="xml")  # type: ignore[arg-type]


class Free:
    """One rollout, with a record of how many of its tokens a search may change."""

    rule = "objective"

    def __init__(self) -> None:
        self.counts: list[int] = []

    async def steps(self, search: Any) -> AsyncIterator[Step]:
        for entry in await search.roll([()], temperature=0.0):
            free = free_positions(entry.rollout, search.sampling.grammar, search.model.tokenizer)
            self.counts.append(len(free))
            yield Step(kind="rollout", committed_text="")

    def select(self, pool: Any) -> Any:
        return next(iter(pool), None)


def test_a_search_leaves_constrained_spans_alone_unless_asked(scripted: Any) -> None:
    strategy = Free()
    llm = ChatNabla(engine=scripted(lambda prompt: PET, strategy=strategy))
    calling = ChatNabla(engine=scripted(lambda prompt: FIRST, strategy=strategy))
    for asked in (False, True):
        llm.with_structured_output(Pet).invoke("x", refine_constrained=asked)
        calling.bind_tools(TOOLS, tool_choice="first").invoke("x", refine_constrained=asked)
    kept, kept_call, free, free_call = strategy.counts
    assert (kept, kept_call) == (0, 0)
    assert free > 0
    assert free_call > 0


# ── usage, metadata, cost ─────────────────────────────────────────────────────────────────────────────────────────


def test_usage_is_of_the_answer_and_the_search_is_in_the_ledger(engine: Engine, question: str) -> None:
    handler = UsageMetadataCallbackHandler()
    llm = ChatNabla(engine=engine, max_tokens=6, strategy=BestOfN(n=2))
    message = llm.invoke(question, {"callbacks": [handler]})
    result = engine.generate(question, sampling=Sampling(max_tokens=6), strategy=BestOfN(n=2))
    assert message.usage_metadata == handler.usage_metadata[engine.model.name]
    counted = message.usage_metadata
    assert (counted["input_tokens"], counted["output_tokens"]) == (result.prompt_tokens, len(result.token_ids))
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]
    assert message.response_metadata["nabla"]["usage"]["rollouts"] == 2
    assert len(json.dumps(message.response_metadata, allow_nan=False)) < 3000


def test_log_probs_are_those_of_the_returned_tokens(engine: Engine, question: str) -> None:
    message = ChatNabla(engine=engine, max_tokens=6, logprobs=True).invoke(question)
    result = engine.generate(question, sampling=Sampling(max_tokens=6))
    content = message.response_metadata["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == pytest.approx(list(result.log_probs))
    assert sum(entry["logprob"] for entry in content) == pytest.approx(result.log_likelihood)
    assert "".join(entry["token"] for entry in content).startswith(result.text)


async def test_alternatives_are_the_models_likeliest_tokens_at_each_place(engine: Engine, question: str) -> None:
    """On every path the same; the first place is checked against a forward pass of the bare network."""
    llm = ChatNabla(engine=engine, max_tokens=5, logprobs=True, top_logprobs=3)
    messages = await six_ways(llm, question)
    entries = [m.response_metadata["logprobs"]["content"] for m in messages]
    assert [[e["token"] for e in found] for found in entries] == [[e["token"] for e in entries[0]]] * 6
    assert all(len(e["top_logprobs"]) == 3 for found in entries for e in found)
    ids = torch.tensor([engine.prompt(question).ids])
    row = engine.model.transformer.module(input_ids=ids).logits[0, -1].double().log_softmax(-1)
    values, tokens = row.topk(3)
    for found in entries:
        top = found[0]["top_logprobs"]
        assert [t["token"] for t in top] == [engine.model.tokenizer.token_text(t) for t in tokens.tolist()]
        assert [t["logprob"] for t in top] == pytest.approx(values.tolist(), abs=1e-3)
        chosen = {t["token"]: t["logprob"] for t in top}.get(found[0]["token"], found[0]["logprob"])
        assert found[0]["logprob"] == pytest.approx(chosen, abs=1e-3)
    spent, plain = (m.response_metadata["nabla"]["usage"] for m in (messages[0], llm.invoke(question, top_logprobs=0)))
    assert spent["lm_forward_tokens"] > plain["lm_forward_tokens"], "the pass for them is in the ledger"
    with pytest.raises(ValidationError, match="logprobs=True"):
        ChatNabla(engine=engine, top_logprobs=2)


def test_reasoning_tokens_are_counted_within_the_output(scripted: Any) -> None:
    message = ChatNabla(engine=scripted(lambda prompt: "<think>\na b c\n</think>\n\nYes.")).invoke("x")
    reasoning = message.usage_metadata["output_token_details"]["reasoning"]  # type: ignore[index]
    assert 0 < reasoning < message.usage_metadata["output_tokens"]  # type: ignore[index]


async def test_n_answers_come_best_first(engine: Engine, question: str) -> None:
    brief = Engine(model=engine.model, reward=FixedReward(lambda r: -float(len(r.text))), strategy=Greedy())
    llm = ChatNabla(engine=brief, max_tokens=5, temperature=2.0, seed=4, n=3)
    sampling = Sampling(max_tokens=5, temperature=2.0)
    singles = [brief.generate(question, seed=4 + i, sampling=sampling).text for i in range(3)]
    [answers] = llm.generate([[HumanMessage(question)]]).generations
    assert [a.text for a in answers] == sorted(singles, key=len)
    assert [m.text for m in await six_ways(llm, question)] == [answers[0].text] * 6


def test_a_time_limit_returns_the_best_so_far(watched_engine: Engine, backend: Any, question: str) -> None:
    backend.seconds = 0.05
    message = ChatNabla(engine=watched_engine, max_tokens=60, timeout=0.2).invoke(question)
    assert message.text
    assert message.response_metadata["nabla"]["detail"].startswith("seconds")


def test_a_draft_is_where_the_search_begins(scripted: Any) -> None:
    engine = scripted(lambda prompt: "other", reward=FixedReward(lambda r: float("draft" in r.text)))
    llm = ChatNabla(engine=engine)
    assert llm.invoke("x").content == "other"
    message = llm.invoke("x", draft="a draft", enough=1.0)
    assert message.content == "a draft"
    assert message.response_metadata["nabla"]["usage"]["generated_tokens"] == 0


# ── identity, cache, copies ───────────────────────────────────────────────────────────────────────────────────────


async def test_every_option_has_its_own_place_in_the_cache(engine: Engine, question: str, counted: Any) -> None:
    llm = ChatNabla(engine=engine, cache=InMemoryCache(), max_tokens=3, rollouts=1)
    calls = counted(engine, "submit")
    options: list[dict[str, Any]] = [
        {},
        {"max_tokens": 2},
        {"seed": 1},
        {"stop": ["x"]},
        {"temperature": 0.5},
        {"strategy": BestOfN(n=1)},
        {"timeout": 50.0},
        {"logprobs": True},
        {"draft": "3"},
        {"tools": TOOLS, "tool_choice": "any"},
        {"tools": TOOLS, "tool_choice": "second"},
        {"response_format": {"type": "json_object"}},
    ]
    first = [llm.invoke(question, **o).text for o in options]
    assert len(calls) == len(options)
    assert [llm.invoke(question, **o).text for o in options] == first
    assert [(await llm.ainvoke(question, **o)).text for o in options] == first
    assert len(calls) == len(options)
    ChatNabla(engine=engine, cache=llm.cache, max_tokens=2, rollouts=1).invoke(question)
    assert len(calls) == len(options), "an option in the constructor is the same as one in the call"


def test_an_unknown_option_is_refused_everywhere(engine: Engine) -> None:
    llm = ChatNabla(engine=engine, max_tokens=1)
    for wrong in (llm.invoke, lambda p, **k: list(llm.stream(p, **k)), lambda p, **k: llm.batch([p], **k)):
        with pytest.raises(TypeError, match=r"typo.*Known: temperature"):
            wrong("x", typo=1)
    with pytest.raises(ValidationError, match="typo"):
        ChatNabla(typo=1)  # type: ignore[call-arg]


def test_another_model_is_loaded_by_its_name(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(), max_tokens=3)
    assert llm.invoke("x", model="scripted").response_metadata["model_name"] == "scripted"
    assert llm.invoke("x", model="tiny").response_metadata["model_name"] == "tiny"
    assert llm.engine is not None


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_copies_share_the_engine_and_weights_stay_out_of_pickles(engine: Engine) -> None:
    llm = ChatNabla(engine=engine, max_tokens=3)
    assert copy.deepcopy(llm).engine is llm.model_copy(deep=True).engine is engine
    pickled = pickle.dumps(llm)
    assert len(pickled) < 5000
    assert pickle.loads(pickled).engine is engine
    configurable = llm.configurable_fields(max_tokens=ConfigurableField(id="max_tokens"))
    assert configurable.invoke("x", {"configurable": {"max_tokens": 1}}).usage_metadata["output_tokens"] == 1
    named = ChatNabla(max_tokens=5, budget=Budget(rollouts=2))
    assert loads(dumps(named), allowed_objects=[ChatNabla], valid_namespaces=["langchain_nabla"]) == named
    assert len(repr(llm)) < 900


def test_chat_and_text_models_share_an_engine(engine: Engine, question: str) -> None:
    llm = NablaLLM(engine=engine, max_tokens=5)
    assert llm.as_chat().engine is ChatNabla(llm=llm).engine is engine
    assert llm.as_chat(max_tokens=2).max_tokens == 2
    assert llm.as_chat().invoke(question).content == llm.invoke(question)


def test_the_profile_knows_the_limits_and_no_unknown_key(engine: Engine) -> None:
    profile = ChatNabla(engine=engine).profile
    assert profile is not None
    assert profile["max_input_tokens"] == engine.model.context_length
    assert profile["structured_output"] is profile["tool_calling"] is True
    assert profile["image_inputs"] is False


def test_callbacks_hear_every_chunk_once(watched_engine: Engine, question: str) -> None:
    class Tokens(BaseCallbackHandler):
        heard: list[str]

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.heard.append(token)

    handler = Tokens()
    handler.heard = []
    chunks = list(ChatNabla(engine=watched_engine, max_tokens=12).stream(question, {"callbacks": [handler]}))
    assert handler.heard == [chunk.content for chunk in chunks]
    assert len(chunks) > 2


# ── threads, async, cancellation ──────────────────────────────────────────────────────────────────────────────────


async def test_eight_callers_take_turns_and_what_waits_is_one_batch(
    watched_engine: Engine, backend: Any, question: str
) -> None:
    backend.seconds = 0.003
    llm = ChatNabla(engine=watched_engine, max_tokens=8)
    questions = [f"What is {i} + 4?" for i in range(8)]
    messages = await asyncio.gather(*(llm.ainvoke(q) for q in questions))
    assert backend.most_inside == 1
    together = backend.calls
    backend.reset()
    assert [llm.invoke(q).content for q in questions] == [message.content for message in messages]
    assert together < backend.calls / 2


async def test_the_loop_is_free_and_the_callers_context_is_seen(
    watched_engine: Engine, backend: Any, drip: Any, question: str, task: Any, ticks_during: Any
) -> None:
    backend.seconds = 0.02
    task.set("mine")
    assert await ticks_during(ChatNabla(engine=watched_engine, max_tokens=10).ainvoke(question)) > 5
    assert drip.tasks == {"mine"}


@pytest.mark.parametrize("path", ["ainvoke", "astream", "abatch"])
async def test_a_cancelled_task_stops_the_engine_within_one_operation(
    watched_engine: Engine, backend: Any, question: str, path: str
) -> None:
    backend.seconds = 0.03
    strategy: Any = type(watched_engine.strategy)(tokens=1)
    llm = ChatNabla(engine=watched_engine, max_tokens=24, strategy=strategy)

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


async def test_an_abandoned_stream_costs_nothing_more(watched_engine: Engine, backend: Any, question: str) -> None:
    llm = ChatNabla(engine=watched_engine, max_tokens=16)
    stream = llm.astream(question)
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    calls = backend.calls
    await asyncio.sleep(0.05)
    assert backend.calls == calls < 4


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("path", ["invoke", "stream", "batch"])
def test_ctrl_c_ends_the_chain_and_not_only_the_call(
    watched_engine: Engine, backend: Any, question: str, path: str
) -> None:
    backend.error_at = (2, KeyboardInterrupt())
    llm = ChatNabla(engine=watched_engine, max_tokens=12)
    calls = {
        "invoke": lambda: llm.invoke(question),
        "stream": lambda: list(llm.stream(question)),
        "batch": lambda: llm.batch([question]),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[path]()


def test_a_tool_is_bound_from_a_function(scripted: Any) -> None:
    @tool
    def first(x: int) -> int:
        """Adds one."""
        return x + 1

    llm = ChatNabla(engine=scripted(lambda prompt: call("first", '{"x": 3}'))).bind_tools([first])
    [asked] = llm.invoke("x").tool_calls
    assert first.invoke(asked).content == "4"
    assert threading.active_count() < 50
