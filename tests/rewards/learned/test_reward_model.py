"""What every reward model with a head is held to, whatever it scores: what is refused, and loading from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nabla_agents import (
    QWEN_MATH_RM,
    ConfigurationError,
    ContextOverflowError,
    ModelLoadError,
    OutcomeFormat,
    OutcomeReward,
    ProcessReward,
    Rollout,
)
from nabla_agents.testing import byte_tokenizer, random_model, random_outcome_reward, random_process_reward

QUESTION = "2+3?"


@pytest.mark.untyped
@pytest.mark.parametrize("kind", [ProcessReward, OutcomeReward])
def test_a_format_is_a_format_before_anything_is_read(kind: Any) -> None:
    for format in ("QWEN_MATH_PRM", {"split": "a"}, 3):
        with pytest.raises(ConfigurationError, match=f"{kind.__name__} got format"):
            kind.from_pretrained("no/such-model", format=format)


@pytest.mark.parametrize("kind", [ProcessReward, OutcomeReward])
def test_the_embedded_reward_is_no_head_reward(kind: type[ProcessReward] | type[OutcomeReward]) -> None:
    with pytest.raises(ConfigurationError, match="ImplicitReward"):
        kind.from_pretrained("tiny")


def test_a_head_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"one or two labels.* 3"):
        random_process_reward(byte_tokenizer(), width=16, layers=1, labels=3)
    two = random_process_reward(byte_tokenizer(), width=16, layers=1, labels=2).transformer.module
    with pytest.raises(ConfigurationError, match=r"one label.* 2.*ProcessReward"):
        OutcomeReward(two, byte_tokenizer())


@pytest.mark.parametrize("kind", [ProcessReward, OutcomeReward])
def test_a_model_without_a_score_head_is_refused(kind: Any) -> None:
    with pytest.raises(ModelLoadError, match="score"):
        kind(random_model(width=16, layers=1).transformer.module, byte_tokenizer())


def test_a_head_that_is_not_applied_to_the_last_states_is_refused() -> None:
    module: Any = random_outcome_reward(byte_tokenizer(), width=16).transformer.module
    forward = module.forward

    def doubled(*args: Any, **inputs: Any) -> Any:
        output = forward(*args, **inputs)
        output.logits = 2 * output.logits
        return output

    module.forward = doubled
    with pytest.raises(ModelLoadError, match="not its head applied"):
        OutcomeReward(module, byte_tokenizer())


def test_a_text_beyond_the_context_is_refused_with_both_numbers() -> None:
    reward = random_outcome_reward(byte_tokenizer(), width=16, context_length=64)
    fits, long = Rollout.from_text(QUESTION, "7"), Rollout.from_text(QUESTION, "7 " * 40)
    assert reward.score([fits])[0].judged
    with pytest.raises(ContextOverflowError, match=rf"{len(reward.reading(long).ids)} tokens.*64"):
        reward.score([long])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_coverage_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="min_coverage"):
        random_outcome_reward(byte_tokenizer(), width=16, min_coverage=share)


@pytest.mark.parametrize("format", [OutcomeFormat(), QWEN_MATH_RM], ids=["linear", "two-layer"])
def test_loaded_from_a_folder_an_outcome_reward_scores_the_same(format: OutcomeFormat, tmp_path: Path) -> None:
    reward = random_outcome_reward(byte_tokenizer(), "llama", format=format, width=16)
    reward.transformer.module.save_pretrained(tmp_path)
    reward.tokenizer.hf.save_pretrained(tmp_path)
    loaded = OutcomeReward.from_pretrained(tmp_path, format=format, min_coverage=0.9)
    rollout = Rollout.from_text(QUESTION, "It is 5.")
    assert loaded.score([rollout])[0].value == pytest.approx(reward.score([rollout])[0].value, abs=1e-6)
    assert loaded.model.min_coverage == 0.9
