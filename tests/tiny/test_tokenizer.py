"""The tokenizer: exact for any text, one token a digit, and a ChatML template with tools."""

import json
import random

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.tiny.tokenizer import EXAMPLE_TOOLS, MARKERS
from nabla_agents.tiny import LM_PATH, REWARD_PATH


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(LM_PATH)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "34 + 27 = 61\nAnswer: 61",
        "naïve – ∇ 你好 👩‍👩‍👧 ١٢٣ ½ \u200b\ufeff e\u0301 \U0010ffff",
        " two  spaces , before ' punctuation n't .\r\n\t\x00\x07 end ",
        json.dumps({"a": [1.5, -2e10, None, True], "ü": {"": '"\\\n'}}),
        json.dumps({"a": [1.5, "ü"]}, indent=2, ensure_ascii=False),
        '<think>x</think><tool_call>\n{"name": "f"}\n</tool_call>',
    ],
)
def test_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_random_unicode_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    draw = random.Random(0)
    for _ in range(300):
        points = (
            draw.choice((draw.randrange(128), draw.randrange(0x800), draw.randrange(0x110000))) for _ in range(40)
        )
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token_and_the_space_before_a_number_another(tokenizer: PreTrainedTokenizerFast) -> None:
    space = tokenizer.convert_ids_to_tokens(tokenizer(" ").input_ids)
    expected = ["3", "4", "Ġ+", *space, "2", "7", "Ġ=", *space, "6", "1", "Ċ", "Answer", ":", *space, "6", "1"]
    assert tokenizer.tokenize("34 + 27 = 61\nAnswer: 61") == expected
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c in "0123456789" for c in token)]


def test_markers_are_single_tokens_and_no_text_is_added(tokenizer: PreTrainedTokenizerFast) -> None:
    for marker in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *MARKERS):
        assert len(tokenizer(marker).input_ids) == 1
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_both_models_share_the_tokenizer_and_a_context_of_8192(tokenizer: PreTrainedTokenizerFast) -> None:
    for path in (LM_PATH, REWARD_PATH):
        assert AutoConfig.from_pretrained(path).max_position_embeddings == 8192
        assert AutoConfig.from_pretrained(path).vocab_size == len(tokenizer)
        assert (path / "tokenizer.json").read_bytes() == (LM_PATH / "tokenizer.json").read_bytes()
    assert tokenizer.model_max_length == 8192


def test_template_renders_turns_and_adds_no_system_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    talk = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == talk
    opened = tokenizer.apply_chat_template(
        [{"role": "system", "content": "s"}, *turns], tokenize=False, add_generation_prompt=True
    )
    assert opened == "<|im_start|>system\ns<|im_end|>\n" + talk + "<|im_start|>assistant\n"


@pytest.mark.parametrize("arguments", [{"expression": "1 + 1", "ü": None}, '{"expression": "1 + 1", "ü": null}'])
def test_template_renders_tools_calls_and_responses(tokenizer: PreTrainedTokenizerFast, arguments: object) -> None:
    """Arguments may be an object or, as some clients send them, its JSON text; both give the same call."""
    call = {"type": "function", "function": {"name": "calculator", "arguments": arguments}}
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "3"},
        ],
        tools=list(EXAMPLE_TOOLS),
        tokenize=False,
        add_generation_prompt=True,
    )
    parts = [part.removesuffix("<|im_end|>\n") for part in text.split("<|im_start|>")]
    before, system, asked, called, answered, opened = parts
    assert before == ""
    assert system.startswith("system\ns\n\n# Tools\n")
    listed = system.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in listed] == list(EXAMPLE_TOOLS)
    assert asked == "user\nq"
    block = called.removeprefix("assistant\n").split("\n")
    assert block[0] == block[3] == "<tool_call>"
    assert block[2] == block[5] == "</tool_call>"
    assert json.loads(block[1]) == {"name": "calculator", "arguments": {"expression": "1 + 1", "ü": None}}
    assert answered == "user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response>"
    assert opened == "assistant\n"


def test_template_keeps_text_beside_a_call(tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"name": "f", "arguments": {}}
    text = tokenizer.apply_chat_template([{"role": "assistant", "content": "w", "tool_calls": [call]}], tokenize=False)
    assert text == '<|im_start|>assistant\nw\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
