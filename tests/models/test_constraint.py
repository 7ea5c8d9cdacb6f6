"""Decoding under a grammar: against json, jsonschema and re; never against what the compiler says of itself."""

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch

from nabla_agents import (
    BestOfN,
    Budget,
    ConfigurationError,
    Engine,
    Grammar,
    GrammarError,
    Greedy,
    LanguageModel,
    Nabla,
    NablaParallel,
    Reply,
    Sampling,
)
from nabla_agents.chat.dialects import DIALECTS, HERMES, MISTRAL, Dialect
from nabla_agents.models.rows import RolloutJob, Row
from nabla_agents.testing import FixedReward, random_model

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "kind": {"enum": ["pen", "é"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 4},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["count", "kind", "inner"],
    "$defs": {"inner": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 2, "maximum": 5}}}},
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "store", "description": "", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "ping", "description": ""}},
]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Bytes, with random weights: it knows no JSON, so all order is the grammar's."""
    return random_model(scale=4.0)


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """Byte-level BPE whose markers are tokens of their own."""
    return LanguageModel.from_pretrained("tiny")


def jobs(model: LanguageModel, grammar: Grammar | None, count: int = 6, **job: Any) -> list[RolloutJob]:
    prompt = model.prompt("x", formatted=True)
    sampling = Sampling(temperature=1.0, grammar=grammar)
    rows = [torch.rand(200, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    return [RolloutJob(prompt, (), sampling, 200, uniforms, **job) for uniforms in rows]


@pytest.mark.parametrize("name", ["model", "tiny"])
def test_json_under_a_schema_is_valid_json(name: str, request: pytest.FixtureRequest) -> None:
    model: LanguageModel = request.getfixturevalue(name)
    rollouts = model.rollout(jobs(model, Grammar.json(SCHEMA)))
    assert len({r.text for r in rollouts}) > 3, "a grammar that leaves no choice tests nothing"
    for rollout in rollouts:
        value = json.loads(rollout.text)
        jsonschema.validate(value, SCHEMA)
        assert set(value) <= set(SCHEMA["properties"])


@pytest.mark.parametrize("name", ["model", "tiny"])
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_calls_of_the_tools(name: str, parallel: bool, request: pytest.FixtureRequest) -> None:
    model: LanguageModel = request.getfixturevalue(name)
    grammar = Grammar.tools(TOOLS, required=True, parallel=parallel)
    names: set[str] = set()
    for rollout in model.rollout(jobs(model, grammar)):
        reply = Reply.read(rollout.text, tools=True)
        assert reply.content == ""
        assert len(reply.tool_calls) == 1 or (parallel and reply.tool_calls)
        for call in reply.tool_calls[: None if rollout.finish_reason == "stop" else -1]:
            assert call.error is None
            jsonschema.validate(dict(call.arguments), SCHEMA if call.name == "store" else {"maxProperties": 0})
            names.add(call.name)
    assert names <= {"store", "ping"}


@pytest.mark.parametrize("name", ["model", "tiny"])
def test_optional_calls_follow_text_and_are_constrained_once_begun(name: str, request: pytest.FixtureRequest) -> None:
    model: LanguageModel = request.getfixturevalue(name)
    grammar = Grammar.tools(TOOLS)
    constraint = model.constraint(grammar)
    begun = model.tokenizer.encode('Well: <tool_call>\n{"name": "')
    assert constraint.take(begun) == len(begun)
    following = constraint.mask()
    first = {model.tokenizer.token_text(int(i))[:1] for i in following.nonzero()[0]}
    assert first == {"s", "p"}
    text = model.constraint(grammar)
    assert text.take(model.tokenizer.encode("no call at all")) > 0
    assert all(text.mask()[i] for i in model.eos_ids)


@pytest.mark.parametrize("name", ["model", "tiny"])
def test_what_has_no_room_is_cut_and_no_value_is_made_shorter(name: str, request: pytest.FixtureRequest) -> None:
    """With fewer tokens a text is the beginning of what it is with more, and says that it was cut."""
    model: LanguageModel = request.getfixturevalue(name)
    for grammar in (Grammar.json(SCHEMA), Grammar.tools(TOOLS, required=True)):
        whole = model.rollout(jobs(model, grammar))
        for room in (1, 8, 25, 60):
            cut = model.rollout([replace(job, max_tokens=room) for job in jobs(model, grammar)])
            for short, long in zip(cut, whole, strict=True):
                length = len(short.completion_ids)
                assert short.completion_ids == long.completion_ids[:length]
                assert length == min(room, len(long.completion_ids)) or Reply.read(short.text, tools=True).tool_calls
                assert short.cut == (len(long.completion_ids) > room or long.cut)


@pytest.mark.parametrize("dialect", [HERMES, MISTRAL], ids=["hermes", "mistral"])
@pytest.mark.parametrize("required", [True, False])
def test_nothing_follows_a_call_that_was_made_twice(model: LanguageModel, dialect: Dialect, required: bool) -> None:
    """Only one call is possible here, so that a further one repeats it; behind different ones any number is written."""
    most = {"type": "object", "properties": {"to": {"enum": ["a", "b", "c"]}}, "required": ["to"]}
    begun = model.tokenizer.encode("" if required else f"Well: {dialect.begin}")
    for parameters, twice in (({"type": "object", "properties": {}}, True), (most, False)):
        tool = {"name": "p", "parameters": parameters}
        grammar = Grammar.tools([tool], required=required, dialect=dialect)
        sampling = Sampling(temperature=100.0, grammar=grammar)  # an end is as likely as another call
        asked = [replace(job, sampling=sampling, prefix_ids=tuple(begun)) for job in jobs(model, grammar, count=40)]
        counts: set[int] = set()
        for rollout in model.rollout(asked):
            calls = re.findall(r'\{"name": "p", "arguments": (\{.*?\})\}', rollout.text)
            assert all(call not in calls[i - 1 : i] for i, call in enumerate(calls[:-1]) if i), calls
            repeated = len(calls) > 1 and calls[-1] == calls[-2]
            assert not repeated or rollout.finish_reason == "stop" or len(rollout.completion_ids) == 200
            assert len(Reply.read(rollout.text, tools=["p"], dialect=dialect).tool_calls) == len(set(calls))
            counts.add(len(calls))
        assert 2 in counts
        assert (max(counts) > 2) is not twice


@pytest.mark.parametrize("name", ["model", "tiny"])
def test_no_call_is_begun_that_cannot_be_ended(name: str, request: pytest.FixtureRequest) -> None:
    """With any room behind a call, what is written is whole calls; and another one where there is room for it."""
    model: LanguageModel = request.getfixturevalue(name)
    grammar = Grammar.tools([{"name": "ping", "parameters": {"type": "object", "properties": {}}}], required=True)
    sampling = Sampling(temperature=100.0, grammar=grammar)  # an end is as likely as another call
    asked = [replace(job, sampling=sampling) for job in jobs(model, grammar, count=24)]
    written = zip(asked, model.rollout(asked), strict=True)
    job, whole = next((job, long) for job, long in written if long.text.count("</tool_call>") > 1)
    one = len(model.tokenizer.encode(whole.text[: whole.text.index("</tool_call>") + len("</tool_call>")]))
    counts = list[int]()
    for room in range(one, len(whole.completion_ids)):
        cut = model.rollout([replace(job, max_tokens=room)])[0]
        assert cut.text.endswith("</tool_call>")
        assert cut.text.count("<tool_call>") == cut.text.count("</tool_call>") > 0
        assert cut.cut
        counts.append(cut.text.count("</tool_call>"))
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, whole.text.count("</tool_call>") + 1))


def test_no_call_of_a_list_is_begun_that_cannot_be_ended(model: LanguageModel) -> None:
    """In Mistral's form, where calls are the items of one list; an array within a call's arguments goes on."""
    mistral = DIALECTS["mistral"]
    numbers = {"type": "object", "properties": {"x": {"type": "array", "items": {"const": 1}}}, "required": ["x"]}
    grammar = Grammar.tools([{"name": "f", "parameters": numbers}], required=True, dialect=mistral)
    one = '[TOOL_CALLS] [{"name": "f", "arguments": {"x": [1, 1]}}'
    for written, settled in ((one, True), (one[: one.index(", 1]")], False), (one[:-1], False), (one + ", {", False)):
        constraint = model.constraint(grammar)
        ids = model.tokenizer.encode(written)
        assert constraint.take(ids) == len(ids)
        assert constraint.settled == settled
    row = Row(
        RolloutJob(
            model.prompt("x"), (), Sampling(grammar=grammar), len(model.tokenizer.encode(one)) + 9, torch.zeros(99)
        ),
        [],
    )
    row.constraint = model.constraint(grammar)
    for token in model.tokenizer.encode(one + ", {"):
        row.ids.append(token)
        row.log_probs.append(0.0)
        row.follow(token)
        if row.finish is not None:
            break
    assert row.finish == "length"
    assert model.tokenizer.decode(row.ids) == one


def test_a_string_that_repeats_itself_without_end_is_cut() -> None:
    """A model of one letter, which cannot find the end of what the schema lets it write."""
    model = random_model(scale=0.0)
    with torch.no_grad():
        model.transformer.module.get_output_embeddings().weight[ord("a")] += 1.0  # the likeliest where it is allowed
    prompt = model.prompt("x", formatted=True)
    endless = Sampling(temperature=0.0, grammar=Grammar.json({"type": "string"}))
    free = Sampling(temperature=0.0)
    job, unconstrained = (RolloutJob(prompt, (), sampling, 2000, torch.zeros(2000)) for sampling in (endless, free))
    [rollout], [other] = model.rollout([job]), model.rollout([replace(unconstrained, max_tokens=500)])
    assert rollout.cut
    assert 256 <= len(rollout.completion_ids) < 400
    assert len(other.completion_ids) == 500


def test_patterns_and_choices(model: LanguageModel) -> None:
    for rollout in model.rollout(jobs(model, Grammar.regex(r"[a-c]{3}/[0-9]{2}"))):
        assert re.fullmatch(r"[a-c]{3}/[0-9]{2}", rollout.text)
    options = ['say "a"', "b\n"]
    assert {r.text for r in model.rollout(jobs(model, Grammar.choice(options)))} <= set(options)
    for option in options:
        assert model.constraint(Grammar.choice(options)).take(ids := model.tokenizer.encode(option)) == len(ids)


def test_reasoning_is_free_and_the_answer_is_not(tiny: LanguageModel) -> None:
    constraint = tiny.constraint(Grammar.choice(["yes", "no"], reasoning=True))
    thought = tiny.tokenizer.encode("<think>3 + 4, {hm}\n</think>\n\n")
    assert constraint.take(thought) == len(thought)
    assert not constraint.take(tiny.tokenizer.encode("maybe"))
    assert constraint.take(answer := tiny.tokenizer.encode("yes")) == len(answer)
    assert constraint.complete or all(constraint.mask()[i] for i in tiny.eos_ids)


def test_rows_with_and_without_a_grammar_share_a_batch(model: LanguageModel) -> None:
    alone = [*model.rollout(jobs(model, None, 2)), *model.rollout(jobs(model, Grammar.choice(["ab", "cd"]), 2))]
    together = model.rollout([*jobs(model, None, 2), *jobs(model, Grammar.choice(["ab", "cd"]), 2)])
    assert [r.completion_ids for r in together] == [r.completion_ids for r in alone]


def test_log_probs_are_the_models_own(model: LanguageModel) -> None:
    [rollout] = model.rollout(jobs(model, Grammar.json(SCHEMA), 1))
    [(expected, _)] = model.token_log_probs([rollout])
    assert rollout.log_probs is not None
    torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-4, atol=1e-4)


def test_a_draft_changes_the_cost_and_never_the_text(model: LanguageModel) -> None:
    grammar = Grammar.json(SCHEMA)
    plain = model.rollout(jobs(model, grammar))
    wrong = (*plain[0].completion_ids[:20], 5, 6, 7)
    for draft in (plain[0].completion_ids, wrong):
        drafted = model.rollout(jobs(model, grammar, draft=draft))
        assert [r.completion_ids for r in drafted] == [r.completion_ids for r in plain]
    assert drafted[0].usage.accepted_draft_tokens > 0


# ── searches ──────────────────────────────────────────────────────────────────────────────────────────────────────


def lengthy(model: LanguageModel) -> Engine:
    """Longer is better, so that a search has always something to change."""
    return Engine(model=model, reward=FixedReward(lambda r: float(len(r.text))), budget=Budget(rollouts=6))


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), Nabla(), NablaParallel()])
def test_every_strategy_keeps_to_the_grammar(model: LanguageModel, strategy: Any) -> None:
    sampling = Sampling(temperature=1.0, grammar=Grammar.json(SCHEMA))
    result = lengthy(model).generate("x", sampling=sampling, strategy=strategy)
    jsonschema.validate(json.loads(result.text), SCHEMA)


@pytest.mark.parametrize("strategy", [Nabla(min_promise=-50), NablaParallel(min_promise=-50)])
def test_constrained_spans_are_refined_only_when_asked(model: LanguageModel, strategy: Any) -> None:
    engine = lengthy(model)
    left = engine.generate("x", sampling=Sampling(grammar=Grammar.json(SCHEMA)), strategy=strategy)
    assert (left.usage.rollouts, left.usage.gradient_passes) == (1, 0)
    asked = Sampling(grammar=Grammar.json(SCHEMA, refine=True))
    refined = engine.generate("x", sampling=asked, strategy=strategy.replace(plausibility_floor=None))
    assert refined.usage.gradient_passes > 0
    assert refined.usage.rollouts == 6
    for step in refined.trace:
        jsonschema.validate(json.loads(step.text), SCHEMA)


def test_text_before_a_call_is_refined_and_the_call_is_not(model: LanguageModel) -> None:
    grammar = Grammar.tools(TOOLS)
    text = 'Well.\n<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    assert [text[a:b] for a, b in grammar.free(text)] == ["Well.\n"]
    assert grammar.free(text[:-5]) == grammar.free(text)
    assert Grammar.json(SCHEMA).free("{}") == []
    assert Grammar.json(SCHEMA, reasoning=True).free("<think>a</think>{}") == [(0, 8)]


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (Grammar.json({"type": "nope"}), "nope"),
        (Grammar.json({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Grammar.json({"$ref": "#/none"}), "none"),
        (Grammar.regex("("), "unclosed group"),
    ],
)
def test_what_does_not_compile_is_refused_before_any_pass(model: LanguageModel, grammar: Grammar, message: str) -> None:
    engine = Engine(model=model, strategy=Greedy())
    for call in (engine.generate, lambda p, **k: engine.generate_batch([p], **k)):
        with pytest.raises(GrammarError, match=message):
            call("x", sampling=Sampling(grammar=grammar))


def test_what_the_compiler_does_not_know_passes_when_asked(model: LanguageModel) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
    for rollout in model.rollout(jobs(model, Grammar.json(schema, lenient=True))):
        jsonschema.validate(json.loads(rollout.text), {**schema, "uniqueItems": False})


@pytest.mark.untyped
def test_what_is_no_grammar_is_refused_at_once() -> None:
    with pytest.raises(GrammarError, match="at least one"):
        Grammar.tools([])
    with pytest.raises(GrammarError, match="expected a name"):
        Grammar.tools([{"type": "function"}])
    with pytest.raises(GrammarError, match="mapping"):
        Grammar.json("{}")  # type: ignore[arg-type]
    with pytest.raises(GrammarError, match="list of texts"):
        Grammar.choice([])
    with pytest.raises(GrammarError, match="cannot be written as JSON"):
        Grammar.json({"const": object()})


def test_a_prefix_outside_the_grammar_is_an_error(model: LanguageModel) -> None:
    [job] = jobs(model, Grammar.choice(["ab"]), 1)
    with pytest.raises(GrammarError, match="does not have that beginning"):
        model.rollout([RolloutJob(job.prompt, (1,), job.sampling, 9, job.uniforms)])


def test_a_tokenizer_that_cannot_be_constrained_says_so() -> None:
    model = random_model(vocabulary=["ab", "c"])
    with pytest.raises(ConfigurationError, match="cannot be constrained"):
        Engine(model=model, strategy=Greedy()).generate("ab", sampling=Sampling(grammar=Grammar.choice(["c"])))
