"""What is read from a completion's text, whole and as it grows."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nabla_agents import Prompt, Reply, StreamedReply, ToolCall
from nabla_agents.chat.dialects import DIALECTS, Dialect

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": "é </x>"}}\n</tool_call>'
PROMPT = Prompt((), "x", (1,))
TEXTS = [
    "plain text  \n",
    "",
    "  <b>no marker</b> < tool_call >",
    CALL,
    f"I add.\n{CALL}\n{CALL}",
    f"<think>\na < b, so\n</think>\n\nI add.\n{CALL}",
    "<think>never closed <tool_ca",
    "<think></think>x",
    f"{CALL} and then more",
    "<tool_call>\n{broken\n</tool_call>",
    "I add.\n<tool_call>",
    "half a marker at the end: <tool_c",
]


def test_reasoning_content_and_calls_are_told_apart() -> None:
    reply = Reply.read(f"<think>\nhm\n</think>\n\nI add.\n{CALL}\n{CALL}", tools=True)
    assert (reply.reasoning, reply.content) == ("hm", "I add.")
    assert [(c.name, dict(c.arguments), c.error) for c in reply.tool_calls] == [("add", {"a": 3, "b": "é </x>"}, None)]


def test_of_calls_that_are_the_same_one_counts() -> None:
    other = CALL.replace("3", "4")
    spaced = CALL.replace('"a": 3', '"a":  3')
    for text in (f"{CALL}\n{other}\n{spaced}\n{CALL}\n{other}", f"{CALL}{other}{CALL}"):
        assert [c.arguments["a"] for c in Reply.read(text, tools=["add"]).tool_calls] == [3, 4]
    listed = ", ".join(raw.split("\n")[1] for raw in (CALL, other, CALL))
    assert [c.arguments["a"] for c in Reply.read(f"[{listed}]", tools=["add"]).tool_calls] == [3, 4]


def test_plain_text_is_left_as_it_is() -> None:
    assert Reply.read(" a \n") == Reply(" a \n")
    assert Reply.read(CALL) == Reply(CALL), "without tools, a marker is text"


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    assert Reply.opens_thinking("<|im_start|>assistant\n<think>\n")
    assert not Reply.opens_thinking("<think>x</think>\n")
    assert Reply.read("hm\n</think>\n\nyes", thinking=True) == Reply("yes", "hm")
    assert Reply.read("hm", thinking=True) == Reply("", "hm")


@pytest.mark.parametrize(
    ("raw", "name", "error"),
    [
        ("{broken", "", "No JSON"),
        ("[1]", "", "Expected an object"),
        ('{"name": 3}', "", "Expected an object"),
        ('{"name": "f", "arguments": [1]}', "f", "no JSON object"),
        ('{"name": "f", "arguments": "{"}', "f", "are no JSON"),
        ('{"name": "f", "arguments": {"x": NaN}}', "", "JSON has no NaN"),
        ('{"name": "f", "arguments": {"x": 1e999}}', "f", "are no JSON"),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', "", "surrogates not allowed"),
        ('{"name": "f", "arguments": ' + '{"x": [' * 150 + "]}" * 150 + "}", "", "nested more than 200 levels"),
        ('{"name": "f", "arguments": ' + "[" * 100_000, "", "nested more than 200 levels"),
        ('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}", "", "No JSON"),
    ],
)
def test_what_is_no_call_says_why(raw: str, name: str, error: str) -> None:
    call = ToolCall.read(f"\n{raw}\n")
    assert (call.name, call.raw, call.arguments) == (name, raw, {})
    assert error in (call.error or "")


def test_a_call_that_cannot_be_read_is_told_only_where_none_was_read_before() -> None:
    """An answer that was cut within its second call is its first call; none is made up of the rest."""
    whole, cut = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', '<tool_call>\n{"name": "g", "argu'
    names = [[call.name for call in Reply.read(text, tools=True).tool_calls] for text in (f"{whole}\n{cut}", whole)]
    assert names == [["f"], ["f"]]
    [alone] = Reply.read(cut, tools=True).tool_calls
    assert alone.error is not None
    broken = "<tool_call>\n{broken\n</tool_call>"
    read = Reply.read(f"{broken}\n{whole}\n{broken}", tools=True).tool_calls
    assert [call.error is None for call in read] == [False, True]


def test_calls_of_other_spellings_are_read_and_written_back() -> None:
    assert ToolCall.read('{"name": "f", "parameters": {"x": 1}}').arguments == {"x": 1}
    assert ToolCall.read('{"name": "f", "arguments": "{\\"x\\": 1}"}').arguments == {"x": 1}
    assert ToolCall.read('{"name": "f"}').arguments == {}
    assert ToolCall("add", {"a": 3, "b": "é </x>"}, "").text == CALL


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("tools", [False, True])
def test_a_growing_text_only_adds_to_its_reply(text: str, thinking: bool, tools: bool) -> None:
    whole = Reply.read(text, tools=tools, thinking=thinking)
    before = Reply("")
    for end in range(len(text) + 1):
        now = Reply.read(text[:end], tools=tools, thinking=thinking, partial=True)
        assert now.reasoning.startswith(before.reasoning)
        assert now.content.startswith(before.content)
        assert now.tool_calls[: len(before.tool_calls)] == before.tool_calls
        assert whole.content.startswith(now.content)
        assert whole.reasoning.startswith(now.reasoning)
        assert whole.tool_calls[: len(now.tool_calls)] == now.tool_calls
        before = now


def test_parts_of_a_growing_reply_add_up_and_calls_keep_their_names() -> None:
    text = '<think>hm</think>\nWell.\n<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
    replies = StreamedReply(PROMPT, 0, tools=True)
    parts = [replies.grown(text[:n]) for n in range(len(text))] + [replies.ended(text)]
    whole = replies.read(text)
    assert "".join(p.content for p in parts) == whole.content == "Well."
    assert "".join(p.reasoning for p in parts) == whole.reasoning == "hm"
    assert tuple(c for p in parts for c in p.tool_calls) == whole.tool_calls
    assert replies.reply == whole
    assert not replies.ended(text)
    ids = [replies.call_id(0), replies.call_id(1), StreamedReply(replace(PROMPT, text="y"), 0, tools=True).call_id(0)]
    assert len(set(ids)) == 3
    assert ids[0] == StreamedReply(PROMPT, 0, tools=True).call_id(0)


def test_the_whole_calls_of_a_list_that_was_cut_are_read() -> None:
    one, other = '{"name": "f", "arguments": {"a": "}, {"}}', '{"name": "g", "arguments": {}}'
    whole = f"[TOOL_CALLS] [{one}, {other}]"
    ends = [
        len(Reply.read(whole[:length], tools=["f", "g"], dialect=DIALECTS["mistral"]).tool_calls)
        for length in (whole.index(one) + len(one), len(whole) - 2, len(whole))
    ]
    assert ends == [1, 1, 2]
    [unreadable] = Reply.read(whole[:40], tools=["f", "g"], dialect=DIALECTS["mistral"]).tool_calls
    assert unreadable.error is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
CALLS = st.fixed_dictionaries({}, optional={"name": VALUES, "arguments": VALUES, "parameters": VALUES})
BITS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=8),  # halves of surrogate pairs too
    (CALLS | st.lists(CALLS) | VALUES).map(json.dumps),
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[THINK]",
            "```json\n",
            "\n```",
            '{"name":',
        ]
    ),
    st.sampled_from(["[", '{"a":', '{"name": "f", "arguments": ']).flatmap(
        lambda opening: st.sampled_from([50, 201, 1100, 5_000]).map(lambda depth: opening * depth + "1")
    ),
    st.sampled_from([400, 4300, 5000]).map(lambda digits: "9" * digits),
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    st.lists(BITS, max_size=6).map("".join),
    st.sampled_from([False, True, ["f"], ["f", "\ud800"]]),
    st.sampled_from(list(DIALECTS.values())),
    st.booleans(),
    st.booleans(),
)
@example('[TOOL_CALLS][{"name": "f", "arguments": {"a": "\ud800"}}]', ["f"], DIALECTS["mistral"], False, False)
@example(
    '[{"name": "f", "arguments": ' + '{"a": ' * 990 + "1" + "}" * 992 + "]", ["f"], DIALECTS["hermes"], False, False
)
def test_any_text_is_read_and_what_is_read_can_be_written(
    text: str, tools: Any, dialect: Dialect, thinking: bool, partial: bool
) -> None:
    """Whatever a model wrote; and arguments that were read go on as JSON to any client."""
    for call in Reply.read(text, tools=tools, thinking=thinking, partial=partial, dialect=dialect).tool_calls:
        assert (
            call.error is not None or json.loads(call.arguments_text.encode(), parse_constant=pytest.fail) is not None
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["```json\n" + "\n" * 20_000 + "x", "<tool_call>" * 20_000, '{"name":"f"' + " " * 20_000]
)
def test_a_long_text_is_read_in_linear_time(text: str) -> None:
    assert not any(call.error is None for call in Reply.read(text, tools=["f"]).tool_calls)
