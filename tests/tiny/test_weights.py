"""The shipped weights: present, small, and a language model that writes solutions."""

import json
import re

import pytest
import torch

from benchmarks.tiny.evaluate import running_text
from benchmarks.tiny.model import greedy_verdicts, load
from nabla_agents.tiny import LM_PATH, REWARD_PATH, problems

WELL_FORMED = re.compile(r"(\d+ [-+*/] \d+ = \d+\n)+Answer: \d+")


def test_both_folders_are_there_and_small() -> None:
    files = [file for path in (LM_PATH, REWARD_PATH) for file in path.iterdir()]
    assert sorted({file.name for file in files}) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(file.stat().st_size for file in files) <= 24_000_000


@pytest.mark.parametrize("path", [LM_PATH, REWARD_PATH], ids=["lm", "reward"])
def test_greedy_completions_are_well_formed_and_often_correct(path: object) -> None:
    """At an accuracy of 0.45, the least allowed, fewer than 4 of 24 right have odds below 1 in 1,000."""
    model, tokenizer = load(path)  # type: ignore[arg-type]
    verdicts = greedy_verdicts(model, tokenizer, problems(24, seed=11, split="test"))
    assert sum(WELL_FORMED.fullmatch(text) is not None for text, _ in verdicts) >= 20
    assert sum(correct for _, correct in verdicts) >= 4


def test_the_two_models_differ_and_are_saved_in_bfloat16() -> None:
    models = [load(path)[0].state_dict() for path in (LM_PATH, REWARD_PATH)]
    assert models[0].keys() == models[1].keys()
    for name, weight in models[0].items():
        assert not torch.equal(weight, models[1][name]), name
        assert torch.equal(weight, weight.bfloat16().float()), name


def test_the_published_figures_meet_what_the_pair_is_for() -> None:
    figures = json.loads((LM_PATH.parent / "figures.json").read_text(encoding="utf-8"))
    assert 0.45 <= figures["lm_greedy_accuracy"]["value"] <= 0.70
    assert figures["wrong_answers_with_wrong_equation"]["value"] >= 0.9
    assert figures["temperature_1.0"]["pass_at_8"]["value"] >= 0.70
    assert figures["temperature_1.0"]["reward_auc"]["value"] >= 0.90
    assert figures["temperature_1.0"]["best_of_8_minus_greedy"]["value"] >= 0.08
    assert 0.35 <= figures["code"]["lm_greedy_accuracy"]["value"] <= 0.65
    behind = figures["behind_system_prompt"]
    assert min(behind.values()) >= 0.75 * behind["0"]


def test_a_question_behind_a_long_prompt_is_still_answered() -> None:
    """At an accuracy of 0.45, the least allowed, fewer than 4 of 24 right have odds below 1 in 1,000."""
    model, tokenizer = load(LM_PATH)
    system = running_text(tokenizer, 1000)
    verdicts = greedy_verdicts(model, tokenizer, problems(24, seed=12, split="test"), system=system, rows=24)
    assert sum(correct for _, correct in verdicts) >= 4
