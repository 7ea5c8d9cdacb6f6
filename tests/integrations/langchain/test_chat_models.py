"""`langchain_nabla.ChatNabla`: what LangChain's own suites do not ask."""

import copy
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypedDict

import pytest
import torch
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator

from langchain_nabla import ChatNabla
from langchain_nabla._messages import MessageWriter, conversation
from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    ChatAnswer,
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

from .conftest import call, merged, six_ways

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


class Tree(BaseModel):
    """A tree."""

    value: int
    children: list["Tree"] = []


class PetDict(TypedDict):
    """A pet."""

    name: str
    age: int


FIRST = call("first", '{"x": 3}')
SECOND = call("second", '{"x": -4}')
PET = '{"name": "Mia", "age": 3}'


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


@pytest.mark.parametrize(
    ("text", "output_version"),
    [
        ("Hello — 你好 🙂, how are you?", None),
        (f"I look.\n{FIRST}\n{SECOND}", "v1"),
        (f"<think>\n3 < 4, so\n</think>\n\n{FIRST}", None),
        (f"<think>\n3 < 4, so\n</think>\n\nI look.\n{FIRST}\n{SECOND}", "v1"),
        ("<think>\nhm\n</think>\n\nYes.", None),
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


def test_a_number_ends_by_its_bounds_and_a_broken_call_is_invalid(scripted: Any) -> None:
    endless = call("first", '{"x": ' + "1" * 500)
    cut = ChatNabla(engine=scripted(lambda prompt: endless), max_tokens=70).bind_tools(TOOLS, tool_choice="any")
    assert cut.invoke("x").tool_calls
    llm: Any = cut.bound  # type: ignore[attr-defined]
    engine = llm.load()
    answer = ChatAnswer(engine.request("x"), engine.model.tokenizer, tools=TOOLS)
    broken = replace(engine.generate("x"), text="Well. <tool_call>\n{broken\n</tool_call>")
    [generation] = MessageWriter(llm, answer).chat_result([broken]).generations
    message: Any = generation.message
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["args"] == "{broken"
    assert "No JSON" in (message.invalid_tool_calls[0]["error"] or "")


def test_call_ids_differ_between_turns_and_not_between_paths(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(lambda prompt: f"{FIRST}\n{SECOND}"))
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
@pytest.mark.parametrize("schema", [Tree, Tree.model_json_schema()], ids=["class", "schema"])
def test_a_class_may_refer_to_itself(scripted: Any, method: Any, schema: Any) -> None:
    """The script breaks the schema deep within, where only the grammar can hold it back: `leaf` is no tree."""
    told: list[str] = []

    def script(prompt: str) -> str:
        told.append(prompt)
        text = '{"value": 1, "children": [{"value": 2, "children": ["leaf"]}]}'
        return call("Tree", text) if "# Tools" in prompt else text

    llm = ChatNabla(engine=scripted(script), max_tokens=200).with_structured_output(schema, method=method)
    [inner] = Tree.model_validate(llm.invoke("x")).children
    assert inner.value == 2
    assert method == "json_mode" or '"$ref": "#/$defs/Tree"' in told[0], "the model is told what the parts are"


def test_a_tool_takes_a_class_that_refers_to_itself(scripted: Any) -> None:
    @tool
    def plant(tree: Tree) -> str:
        """Plants a tree."""
        return ""

    llm = ChatNabla(engine=scripted(lambda prompt: call("plant", '{"tree": {"value": 1, "children": [7]}}')))
    [planted] = llm.bind_tools([plant], tool_choice="plant").invoke("x").tool_calls
    assert Tree.model_validate(planted["args"]["tree"]).value == 1


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


class Sum(BaseModel):
    """What no grammar can keep: the total is that of the parts."""

    parts: list[int]
    total: int

    @field_validator("total")
    @classmethod
    def adds_up(cls, total: int, info: ValidationInfo) -> int:
        if total != (due := sum(info.data["parts"])):
            raise ValueError(f"the parts add up to {due}")
        return total


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
async def test_what_a_validator_refuses_is_told_and_written_anew_from_there(scripted: Any, method: Any) -> None:
    """The model knows the sum once it is told, and the answer to the last request is given back whole."""
    script: Callable[[str], str] = lambda p: f'{{"parts": [2, 3], "total": {5 if "add up to 5" in p else 9}}}'  # noqa: E731
    engine = scripted(script, strategy=None, reward=ArithmeticSteps(), budget=Budget(rollouts=3))
    llm = ChatNabla(engine=engine)
    bound = llm.with_structured_output(Sum, method=method, include_raw=True)
    got = bound.invoke("x")
    assert got["parsed"] == Sum(parts=[2, 3], total=5) == (await bound.ainvoke("x"))["parsed"]
    ledger = got["raw"].response_metadata["nabla"]["usage"]
    assert ledger["rollouts"] == 2
    assert ledger["generated_tokens"] < 2 * len(engine.model.tokenizer.encode(got["raw"].content))
    greedy = ChatNabla(engine=engine, strategy=Greedy()).with_structured_output(Sum, method=method)
    with pytest.raises(OutputParserException, match="add up to 5"):
        greedy.invoke("x")


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


def test_another_model_is_loaded_by_its_name(scripted: Any) -> None:
    llm = ChatNabla(engine=scripted(), max_tokens=3)
    assert llm.invoke("x", model="scripted").response_metadata["model_name"] == "scripted"
    assert llm.invoke("x", model="tiny").response_metadata["model_name"] == "tiny"
    assert llm.engine is not None


def test_the_profile_knows_the_limits_and_no_unknown_key(engine: Engine) -> None:
    profile = ChatNabla(engine=engine).profile
    assert profile is not None
    assert profile["max_input_tokens"] == engine.model.context_length
    assert profile["structured_output"] is profile["tool_calling"] is True
    assert profile["image_inputs"] is False


# ── threads, async, cancellation ──────────────────────────────────────────────────────────────────────────────────


def test_a_tool_is_bound_from_a_function(scripted: Any) -> None:
    @tool
    def first(x: int) -> int:
        """Adds one."""
        return x + 1

    llm = ChatNabla(engine=scripted(lambda prompt: call("first", '{"x": 3}'))).bind_tools([first])
    [asked] = llm.invoke("x").tool_calls
    assert first.invoke(asked).content == "4"
    assert threading.active_count() < 50


# ── answers that were cut ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("way", ["invoke", "stream", "raw"])
def test_a_cut_object_is_an_error_that_names_max_tokens_and_never_an_emptied_object(
    scripted: Any, method: Any, way: str
) -> None:
    script = call("Pet", PET) if method == "function_calling" else PET
    llm = ChatNabla(engine=scripted(lambda prompt: script), max_tokens=12)
    parsed = llm.with_structured_output(Pet, method=method, include_raw=way == "raw")
    if way == "raw":
        result = parsed.invoke("x")
        assert result["parsed"] is None
        assert "max_tokens" in str(result["parsing_error"])
        return
    with pytest.raises(OutputParserException, match="max_tokens"):
        parsed.invoke("x") if way == "invoke" else list(parsed.stream("x"))
