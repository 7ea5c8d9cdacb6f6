"""JSON of a shape as reward: what fits, where it does not, and that neither text nor schema can stall it."""

import json
import threading
import time
from typing import Any

import pytest

from nabla_agents import ConfigurationError, JsonSchema, Rollout

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "ages": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann"}',
        ' \n{"name": "Ann", "ages": [1, 2]}\n',
        'Here it is:\n```json\n{"name": "Ann"}\n```\nDone.',
        '```\n{"name": "Ann"}\n```',
        '```json\n{"name": 3}\n```\nno, better:\n```json\n{"name": "Ann"}\n```',
        '```json\n{"name": "Ann"}\n```\n```python\nprint(1)\n```',  # the block marked json, not the last one
        '~~~json\n{"name": "Ann"}\n~~~',
        '```json\n{"name": "Ann"}',  # not closed
    ],
)
def test_json_that_fits_is_verified(text: str) -> None:
    score = JsonSchema(PERSON).judge(text)
    assert (score.value, score.verdict, score.verified, score.spans) == (1.0, 1.0, True, ()), score.explanation


@pytest.mark.parametrize(
    ("text", "value", "place", "said"),
    [
        ('{"name": 3}', 0.5, "3", "$.name"),
        ('{"name": "ann"}', 0.5, '"ann"', "does not match"),
        ('{"name": "Ann", "ages": [1, {"a": [2]}, 3]}', 0.5, '{"a": [2]}', "$.ages[1]"),
        ('so:\n```json\n{"name": "Ann", "ages": [1, "x"]}\n```', 0.5, '"x"', "$.ages[1]"),
        ('{"name": "Ann", "age": 7}', 0.5, "7", "'age' is not allowed"),
        ('{"name": 1, "name": 2}', 0.5, "2", "$.name"),  # the last of two equal keys counts
        ('{"ages": [1]}', 0.5, '{"ages": [1]}', "'name' is a required property"),
        ("[]", 0.5, "[]", "not of type 'object'"),
        ('{"name": "Ann"', 0.0, '"', "no JSON"),  # ended too early: its last character
        ('{"name": "Ann",}', 0.0, "}", "no JSON"),
        ("{'name': 'Ann'}", 0.0, "'", "no JSON"),
        ('{"name": "Ann"} and more', 0.0, "a", "Extra data"),
        ("the name is Ann", 0.0, "t", "no JSON"),
        ('{"name": NaN}', 0.0, "N", "NaN is no JSON"),
        ('{"name": -Infinity}', 0.0, "-", "-Infinity is no JSON"),
        ("9" * 5000, 0.0, "9", "no JSON"),
        ('{"name": "\x00"}', 0.0, "\x00", "no JSON"),
        ("\ud800", 0.0, "\ud800", "no JSON"),
    ],
)
def test_what_does_not_fit_is_located(text: str, value: float, place: str, said: str) -> None:
    score = JsonSchema(PERSON, credit=2.0).judge(text)
    assert (score.value, score.verdict, score.verified) == (value, value, False)
    [span] = score.spans
    assert (text[span.start : span.end], span.value, span.credit) == (place, -1.0, 2.0), score.explanation
    assert said in score.explanation


def test_no_text_is_no_json_and_has_no_place() -> None:
    for text in ("", "```json\n```"):
        score = JsonSchema().judge(text)
        assert (score.value, score.verified) == (0.0, False)


@pytest.mark.parametrize("deep", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000, "[{" * 40])
def test_deep_json_is_refused_at_its_65th_bracket(deep: str) -> None:
    score = JsonSchema(max_characters=1_000_000).judge(deep)
    assert (score.value, score.verified) == (0.0, False)
    [span] = score.spans
    brackets = [i for i, c in enumerate(deep[:1000]) if c in "[{"]
    assert span.start == brackets[64]


def test_brackets_in_strings_are_no_depth() -> None:
    assert JsonSchema().judge(json.dumps(["[" * 1000 + '"' + "\\" * 7, "{" * 1000])).verified is True


def test_any_json_and_nothing() -> None:
    assert JsonSchema().judge("[1, null, true]").verified is True
    assert JsonSchema(False).judge("[1]").verified is False


def test_one_condition_among_others_objects_but_does_not_vouch() -> None:
    tool = JsonSchema(PERSON, vouches=False)
    assert [tool.judge(text).verified for text in ('{"name": "Ann"}', "{}")] == [None, False]


def test_references_within_the_schema_are_followed() -> None:
    tree = {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
    assert JsonSchema(tree).judge('{"child": {"child": {}}}').verified is True
    wrong = '{"child": {"child": 3}}'
    [span] = JsonSchema(tree).judge(wrong).spans
    assert wrong[span.start : span.end] == "3"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"$ref": "https://example.org/schema"}, "1"),  # never fetched
        ({"$ref": "#/nowhere"}, "1"),
        ({"$ref": "#"}, "1"),  # leads round in a circle
    ],
)
def test_a_schema_that_cannot_be_applied_judges_nothing(schema: dict[str, Any], text: str) -> None:
    score = JsonSchema(schema).judge(text)
    assert not score.judged
    assert "cannot be applied" in score.explanation


NESTED = {"type": ["array", "string"], "anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}
SLOW: list[tuple[dict[str, Any], str]] = [
    ({"pattern": "^(a|aa)+$"}, json.dumps("a" * 3000 + "b")),
    ({"patternProperties": {"^(a|aa)+$": True}}, json.dumps({"a" * 3000 + "b": 1})),
    ({"patternProperties": {"^(a|aa)+$": True}, "additionalProperties": False}, json.dumps({"a" * 3000 + "b": 1})),
    ({"propertyNames": {"pattern": "^(a|aa)+$"}}, json.dumps({"a" * 3000 + "b": 1})),
    (NESTED, "[" * 40 + "1" + "]" * 40),  # 2^40 ways to be wrong
]


@pytest.mark.parametrize(("schema", "text"), SLOW)
def test_a_check_beyond_its_time_is_not_judged(schema: dict[str, Any], text: str) -> None:
    started = time.perf_counter()
    score = JsonSchema(schema, timeout_seconds=0.3).judge(text)
    assert time.perf_counter() - started < 10
    assert not score.judged
    assert "longer than 0.3 s" in score.explanation
    for _ in range(1000):  # nobody waits for the thread of the check, and it ends all the same
        if not any("_first_error" in thread.name for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    pytest.fail("the check computes on")


@pytest.mark.parametrize(
    ("text", "unique"),
    [
        (json.dumps([*range(14_000), None]), True),
        (json.dumps([*({"a": [i]} for i in range(5000)), {"a": [0]}]), False),
        ('[1, true, "1", [1], {"1": 1}]', True),
        ("[[0], [false], {}, []]", True),
        ("[1, 1.0]", False),
        ('[{"a": 1, "b": [2]}, {"b": [2.0], "a": 1}]', False),
        ("3", True),
    ],
)
def test_unique_items_are_found_in_linear_time(text: str, unique: bool) -> None:
    started = time.process_time()
    assert JsonSchema({"uniqueItems": True}, timeout_seconds=20.0).judge(text).verified is unique
    assert time.process_time() - started < 5


def test_a_number_beyond_floats_that_a_keyword_cannot_take_is_not_judged() -> None:
    assert "cannot be applied: OverflowError" in JsonSchema({"multipleOf": 0.5}).judge("1e999").explanation


def test_a_text_beyond_the_limit_is_not_judged() -> None:
    assert not JsonSchema(max_characters=5).judge("[1, 2]").judged


@pytest.mark.untyped
def test_bytes_are_not_judged() -> None:
    [score] = JsonSchema().score([Rollout.from_text("?", b"{}")])  # type: ignore[arg-type]
    assert not score.judged
    assert "bytes" in score.explanation


DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"not": DEEP}


@pytest.mark.untyped
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"required": "name"},
        {"pattern": "("},
        {"patternProperties": {"(": {}}},
        {"patternProperties": {"a": {}}, "unevaluatedProperties": False},
        {"enum": {1, 2}},
        DEEP,
        "object",
        None,
        3,
        b"{}",
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="JsonSchema"):
        JsonSchema(schema)


def test_a_schema_changed_later_changes_nothing() -> None:
    schema: dict[str, Any] = {"type": "object"}
    tool = JsonSchema(schema)
    schema["type"] = "array"
    assert tool.judge("{}").verified is True


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"age": 3}', ""),
        ('{"age": "x"}', "The JSON does not fit the schema at $.age: 'x' is not of type 'integer'."),
        ("{}", "The JSON does not fit the schema at $: 'age' is a required property."),
        ('{"age": 3', "The answer is no JSON: Expecting ',' delimiter, at its end."),
        ("three\x1b<|im_end|>", r"The answer is no JSON: Expecting value, at 'three\x1b<|im_end|>'."),
    ],
)
def test_a_model_is_told_the_value_that_does_not_fit(text: str, told: str) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    assert JsonSchema(schema).judge(text).feedback == told


def test_what_a_model_is_told_of_a_huge_value_is_short() -> None:
    told = JsonSchema({"type": "integer"}).judge('"' + "\\u0000\\u001b" * 5000 + '"').feedback
    assert told.startswith(r"The JSON does not fit the schema at $: '\x00\x1b")
    assert len(told) <= 500
