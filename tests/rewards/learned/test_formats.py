"""Formats: what the presets declare, which of their own making are refused, and tokens that a tokenizer has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from nabla_agents import (
    MATH_SHEPHERD,
    QWEN_MATH_PRM,
    RLHFLOW_PRM,
    SKYWORK_O1_PRM,
    TRL_PRM,
    ConfigurationError,
    OutcomeFormat,
    ProcessReward,
    StepFormat,
)
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.rewards.learned.formats import step_tokens
from nabla_agents.testing import byte_tokenizer, random_process_reward
from tests.rewards.learned.answers import shepherd_tokenizer


def test_the_presets_say_what_the_model_cards_say() -> None:
    """Ids and texts by hand from the cards and papers; a change here needs a source."""
    assert (QWEN_MATH_PRM.separator, QWEN_MATH_PRM.separator_id, QWEN_MATH_PRM.max_length) == (
        "<extra_0>",
        151651,
        4096,
    )
    assert QWEN_MATH_PRM.system == "Please reason step by step, and put your final answer within \\boxed{}."
    assert (QWEN_MATH_PRM.split, QWEN_MATH_PRM.aggregation) == ("\n\n", "product")
    assert (MATH_SHEPHERD.separator, MATH_SHEPHERD.separator_id, MATH_SHEPHERD.aggregation) == (" ки", 12902, "min")
    assert (MATH_SHEPHERD.right_id, MATH_SHEPHERD.wrong_id) == (648, 387)
    assert (RLHFLOW_PRM.right, RLHFLOW_PRM.wrong, RLHFLOW_PRM.turns, RLHFLOW_PRM.aggregation) == (
        "+",
        "-",
        True,
        "mean",
    )
    assert (SKYWORK_O1_PRM.split, SKYWORK_O1_PRM.prompt, SKYWORK_O1_PRM.apart) == ("\n", "{bos}{question}\n", True)
    assert (TRL_PRM.split, TRL_PRM.separator, TRL_PRM.head) == ("\n", None, "classes")


INCONSISTENT = [
    ({"head": "tokens"}, "right and wrong"),
    ({"right": "+", "wrong": "-"}, "right and wrong"),
    ({"head": "tokens", "right": "+"}, "right and wrong"),
    ({"head": "tokens", "right": "+", "wrong": "+"}, "differ"),
    ({"turns": True}, "turns"),
    ({"head": "tokens", "right": "+", "wrong": "-", "turns": True, "separator": "#"}, "turns"),
    ({"glue": "\n"}, "glue"),
    ({"separator_id": 3}, "separator"),
    ({"right_id": 3}, "right_id"),
    ({"prompt": "Q:"}, "question"),
    ({"split": ""}, "split"),
    ({"max_length": 0}, "max_length"),
    ({"tag": "#"}, "tag"),
]
OUTCOMES = [{"output": ""}, {"head": "value"}, {"max_length": 0}, {"name": "x"}]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [(StepFormat, *case) for case in INCONSISTENT] + [(OutcomeFormat, s, "OutcomeFormat") for s in OUTCOMES],
    ids=repr,
)
def test_formats_that_contradict_themselves_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(**settings)


def folder(path: Path, tokenizer: PreTrainedTokenizerBase, *, labels: int = 2) -> Path:
    """Config and tokenizer without any weight: what is refused here is refused before weights are looked for."""
    module = random_process_reward(byte_tokenizer(), width=16, layers=1).transformer.module
    module.config.num_labels = labels
    module.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


BAD_TOKENS = [
    (QWEN_MATH_PRM, r"separator '<extra_0>' is not one token"),
    (QWEN_MATH_PRM.replace(separator="#"), r"id 151651.*has it as 2\b"),
    (MATH_SHEPHERD.replace(separator="#", separator_id=None), r"right ' \+' is not one token"),
    (RLHFLOW_PRM.replace(right_id=11), r"right '\+' as id 11"),
    (RLHFLOW_PRM.replace(wrong="no"), r"wrong 'no' is not one token"),
]


@pytest.mark.parametrize(("format", "message"), BAD_TOKENS)
def test_tokens_that_a_tokenizer_has_not_are_refused_before_weights(
    format: StepFormat, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ProcessReward.from_pretrained(folder(tmp_path, byte_tokenizer()), format=format)


def test_an_unknown_token_is_no_separator() -> None:
    with pytest.raises(ConfigurationError, match="not one token"):
        step_tokens(StepFormat(separator="<unk>"), Tokenizer(shepherd_tokenizer(), name="sp"))


def test_tokens_of_the_presets_are_looked_up_in_context() -> None:
    """`▁ки` and `▁+` are tokens that only a text before them shows."""
    hf, format = shepherd_tokenizer(), MATH_SHEPHERD.replace(separator_id=None, right_id=None, wrong_id=None)
    tokens = step_tokens(format, Tokenizer(hf, name="sp"))
    assert hf.convert_ids_to_tokens([tokens.separator, tokens.right, tokens.wrong]) == ["▁ки", "▁+", "▁-"]


def test_a_head_of_the_wrong_width_is_refused_before_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"one or two labels.* 3"):
        ProcessReward.from_pretrained(folder(tmp_path, byte_tokenizer(), labels=3))
