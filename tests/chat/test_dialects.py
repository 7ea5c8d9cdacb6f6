"""Each family's dialect in both directions: its prompts, what its grammar enforces, what is read, also in parts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from nabla_agents import FinishReason, Grammar, LanguageModel, Message, Prompt, Reply, Sampling, StreamedReply
from nabla_agents.chat.dialects import DIALECTS, HERMES, LLAMA3, MISTRAL, Dialect
from nabla_agents.chat.template import in_dialect
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import byte_tokenizer, random_model

TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"x": {"enum": [1, 2]}}}},
    }
    for name in ("add", "look_up")
]
NAMES = ("add", "look_up")
# How the families' templates write a conversation, cut down to roles, tools and calls.
TEMPLATES = {
    "llama3": (
        "{% for m in messages %}"
        '{% if loop.first and tools %}<|user|>Respond in the format {"name": function name, "parameters": dictionary '
        "of argument name and its value}.{{ tools | tojson }}\n{% endif %}"
        "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('single tool-calls at once!') }}"
        '{% endif %}<|assistant|>{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
        "{{ m.tool_calls[0].function.arguments | tojson }}}<eos>"
        "{% else %}<|{{ m.role }}|>{{ m.content }}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}"
        "{% if loop.last and tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
        "{% if c.id | length != 9 %}{{ raise_exception('alphanumeric strings with length 9!') }}{% endif %}"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
        "\"id\": \"{{ c.id }}\"}{{ '' if loop.last else ', ' }}{% endfor %}]<eos>"
        '{% elif m.role == \'tool\' %}[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}'
        "[/TOOL_RESULTS]"
        "{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    ),
    "hermes": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        '{% for c in m.tool_calls or [] %}\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


def call(name: str, value: int, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": {"x": value}}}


CONVERSATION = [
    Message("user", "Both, please."),
    Message("assistant", "", {"tool_calls": [call("add", 1, "call_0123456789"), call("look_up", 2, "b" * 9)]}),
    Message("tool", "11", {"tool_call_id": "call_0123456789"}),
    Message("tool", "22", {"tool_call_id": "b" * 9}),
    Message("user", "And now?"),
]


def model_of(dialect: Dialect, *, special: bool = True) -> LanguageModel:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES[dialect.name]
    if special:
        markers = [m for m in (dialect.begin, dialect.end) if m]
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(m, special=True) for m in markers]})
    return random_model(tokenizer=tokenizer, layers=1, width=16, context_length=2048)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_a_family_is_known_by_its_template(dialect: Dialect) -> None:
    assert Dialect.of(TEMPLATES[dialect.name]) is dialect
    assert model_of(dialect).tokenizer.dialect is dialect


def test_an_unknown_template_has_the_dialect_that_is_written_into_its_text() -> None:
    assert Dialect.of("{{ messages }}") is Dialect.of(None) is HERMES


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_a_conversation_with_two_calls_is_rendered_as_the_family_has_it(dialect: Dialect) -> None:
    """Llama refuses two calls in a turn, Mistral names of another length than nine."""
    text = model_of(dialect, special=False).prompt(CONVERSATION, tools=TOOLS).text
    assert text.count('"name": "add"') >= 1
    assert text.index('"add"') < text.index("11") < text.index("22")
    if dialect is LLAMA3:
        assert text.index("11") < text.index('{"name": "look_up", "parameters": {"x": 2}}') < text.index("22")
    if dialect is MISTRAL:
        [name] = {part[:9] for part in text.split('"call_id": "')[1:] if part[:9] != "b" * 9}
        assert f'"id": "{name}"' in text


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    ("dialect", "special"),
    [(HERMES, False), (LLAMA3, False), (MISTRAL, False), (MISTRAL, True)],  # Mistral's marker is a token without text
    ids=["hermes", "llama3", "mistral", "mistral, special"],
)
def test_what_the_grammar_enforces_is_what_is_read(
    dialect: Dialect, special: bool, required: bool, parallel: bool
) -> None:
    """Sixteen samples of a random model; the calls have the arguments' key of the family, and parse as calls."""
    model = model_of(dialect, special=special)
    grammar = Grammar.tools(TOOLS, required=required, parallel=parallel, dialect=dialect)
    prompt, seen = model.prompt("x", tools=TOOLS), 0
    for rollout in model.rollout([job(model, prompt, grammar, seed) for seed in range(16)]):
        reply = Reply.read(rollout.text, tools=NAMES, dialect=dialect)
        whole = reply.tool_calls[: -1 if rollout.finish_reason is FinishReason.LENGTH else None]
        assert all(c.error is None and c.name in NAMES for c in whole)
        assert (parallel and dialect.several != "never") or len(reply.tool_calls) <= 1
        assert f'"{dialect.arguments}"' in rollout.text or not whole
        assert reply.tool_calls or not required
        seen += len(whole)
    assert seen > 0 or not required


def job(model: LanguageModel, prompt: Prompt, grammar: Grammar, seed: int) -> RolloutJob:
    uniforms = torch.rand(120, generator=torch.Generator().manual_seed(seed))
    return RolloutJob(prompt, (), Sampling(temperature=1.0, grammar=grammar), 120, uniforms)


CALL = {"name": "add", "arguments": {"x": 1}}
WRITTEN = {
    "hermes": ['<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'],
    "llama3": ['{"name": "add", "parameters": {"x": 1}}', '\n{"name":"add","parameters":{"x":1}}'],
    "mistral": ['[TOOL_CALLS] [{"name": "add", "arguments": {"x": 1}}]', '[{"name": "add", "arguments": {"x": 1}}]'],
}
BARE = [
    json.dumps(CALL),
    f"```json\n{json.dumps(CALL)}\n```",
    f"```\n{json.dumps([CALL])}\n```\n",
    f"  {json.dumps(CALL)}\n",
]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_calls_are_read_in_the_familys_form_and_bare_ones_in_any(dialect: Dialect) -> None:
    for text in [*WRITTEN[dialect.name], *BARE]:
        reply = Reply.read(text, tools=NAMES, dialect=dialect)
        assert (reply.content, [(c.name, dict(c.arguments)) for c in reply.tool_calls]) == ("", [("add", {"x": 1})]), (
            text
        )


@pytest.mark.parametrize(
    "text",
    [
        'Use {"name": "add", "arguments": {"x": 1}}.',
        '{"name": "unknown", "arguments": {}}',
        '{"x": 1}',
        "```python\nadd(1)\n```",
        '{"name": "add", "arguments": {"x": 1}} and so on',
        '[1, {"name": "add"}]',
    ],
)
def test_what_is_no_call_alone_stays_text(text: str) -> None:
    assert Reply.read(text, tools=NAMES) == Reply(text)
    assert Reply.read(json.dumps(CALL), tools=True) == Reply(json.dumps(CALL)), "without names, nothing bare is a call"
    assert Reply.read(json.dumps(CALL)) == Reply(json.dumps(CALL)), "nothing was offered"


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_a_growing_text_only_adds_to_its_reply(dialect: Dialect) -> None:
    begin, end = dialect.thought
    texts = [
        *WRITTEN["hermes"],
        *WRITTEN["llama3"],
        *WRITTEN["mistral"],
        *BARE,
        "```python\nadd(1)\n```",
        '{"name": "ad',
    ]
    texts += [f"{begin}hm{end}\n{text}" for text in texts] + [f"Well.\n{text}" for text in texts]
    for text in texts:
        replies = StreamedReply(Prompt((), "x", (1,)), 0, tools=TOOLS, dialect=dialect)
        parts = [replies.grown(text[:n]) for n in range(len(text))] + [replies.ended(text)]
        whole = replies.read(text)
        assert "".join(p.content for p in parts) == whole.content, text
        assert "".join(p.reasoning for p in parts) == whole.reasoning
        assert tuple(c for p in parts for c in p.tool_calls) == whole.tool_calls


@pytest.mark.parametrize("dialect", [LLAMA3, MISTRAL], ids=lambda d: d.name)
def test_a_call_that_was_cut_says_why_it_is_none(dialect: Dialect) -> None:
    [call] = Reply.read(WRITTEN[dialect.name][-1][:-9], tools=NAMES, dialect=dialect).tool_calls
    assert "No JSON" in (call.error or "")


def test_names_of_calls_have_the_length_that_the_family_insists_on() -> None:
    prompt = Prompt((), "x", (1,))
    name = StreamedReply(prompt, 0, tools=TOOLS, dialect=MISTRAL).call_id(0)
    assert len(name) == 9
    assert name.isalnum()
    assert StreamedReply(prompt, 0, tools=TOOLS).call_id(0).startswith("call_")


def test_what_a_search_may_change_ends_where_a_call_begins() -> None:
    for dialect in DIALECTS.values():
        grammar = Grammar.tools(TOOLS, dialect=dialect)
        for text in WRITTEN[dialect.name]:
            assert grammar.free(text) == [] or grammar.free(text) == [(0, 1)]
            spans = grammar.free("So: " + text)
            assert spans[0][0] == 0
            assert spans[0][1] <= 5
    assert replace(Grammar.tools(TOOLS), refine=True).free("abc") == [(0, 3)]


def test_turns_of_one_call_keep_every_result_behind_its_call() -> None:
    turns = in_dialect(CONVERSATION, LLAMA3)
    assert [m.role for m in turns] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [m.content for m in turns if m.role == "tool"] == ["11", "22"]
