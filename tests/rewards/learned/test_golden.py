"""Stored scores: what is compared, and what a failure says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nabla_agents import ConfigurationError, Message, ProcessReward, RewardError, Rollout, StepFormat
from nabla_agents.testing import byte_tokenizer, random_outcome_reward, random_process_reward

ANSWERS = [
    ("How much?", "2+3.\nThat is 5."),
    ("How much?", "7"),
    ((Message("system", "Be brief."), Message("user", "2+3?")), "5\nor six\nor so"),
]


@pytest.fixture(scope="module")
def reward() -> ProcessReward:
    return random_process_reward(byte_tokenizer(), width=16, seed=2)


@pytest.fixture
def stored(reward: ProcessReward, tmp_path: Path) -> Callable[..., Path]:
    """A file of golden scores with changes: a function of the cases."""

    def make(change: Callable[[list[dict[str, Any]]], None] = lambda cases: None) -> Path:
        path = tmp_path / "golden.json"
        reward.record(path, ANSWERS)
        content = json.loads(path.read_text())
        change(content["cases"])
        path.write_text(json.dumps(content))
        return path

    return make


def each_score(change: Callable[[float], float], *, ids: bool = True) -> Callable[[list[dict[str, Any]]], None]:
    def apply(cases: list[dict[str, Any]]) -> None:
        for case in cases:
            case["scores"] = [change(x) for x in case["scores"]]
            if not ids:
                del case["ids"]

    return apply


def test_what_was_recorded_is_what_is_scored(reward: ProcessReward, stored: Callable[..., Path]) -> None:
    path = stored()
    cases = json.loads(path.read_text())["cases"]
    for case, (question, answer) in zip(cases, ANSWERS, strict=True):
        [score] = reward.score([Rollout.from_text(question, answer)])
        assert case["scores"] == [(s.value + 1) / 2 for s in score.spans]
        assert case["ids"] == list(reward.reading(Rollout.from_text(question, answer)).ids)
    assert reward.self_test(path) < 1e-6
    assert reward.self_test(stored(each_score(lambda p: p + 5e-4))) == pytest.approx(5e-4, abs=1e-6)


def test_an_outcome_score_is_compared_relative_to_its_size(tmp_path: Path) -> None:
    outcome = random_outcome_reward(byte_tokenizer(), width=16, scale=40.0)
    path = tmp_path / "golden.json"
    outcome.record(path, ANSWERS)
    content = json.loads(path.read_text())
    assert all(len(c["scores"]) == 1 and abs(c["scores"][0]) > 2 for c in content["cases"])
    for case in content["cases"]:
        case["scores"][0] *= 1.0005
    path.write_text(json.dumps(content))
    assert outcome.self_test(path) == pytest.approx(5e-4, rel=1e-2)
    with pytest.raises(RewardError, match="3 of 3 cases"):
        outcome.self_test(path, tolerance=1e-4)


CAUSES = [
    (each_score(lambda p: float(torch.logit(torch.tensor(p)))), "Stored are logits"),
    (each_score(lambda p: float(torch.sigmoid(torch.tensor(p)))), "softmax or sigmoid applied once more"),
    (each_score(lambda p: 1 - p), "swapped"),
    (each_score(lambda p: p + 0.02), "dtype"),
    (each_score(lambda p: p + 0.4, ids=False), "separator, system prompt, bos"),
]


@pytest.mark.parametrize(("change", "cause"), CAUSES, ids=[cause for _, cause in CAUSES])
def test_a_difference_names_the_likely_cause(
    reward: ProcessReward, stored: Callable[..., Path], change: Any, cause: str
) -> None:
    with pytest.raises(RewardError, match=cause) as failure:
        reward.self_test(stored(change))
    assert "case 0 ('2+3.\\nThat is 5.')" in str(failure.value)


def test_another_number_of_steps_names_the_split(reward: ProcessReward, stored: Callable[..., Path]) -> None:
    def shorten(cases: list[dict[str, Any]]) -> None:
        cases[2]["scores"].pop()

    with pytest.raises(RewardError, match=r"1 of 3 cases[^$]*case 2[^$]*3 steps against 2. Likely: the split rule"):
        reward.self_test(stored(shorten))


def test_another_text_is_found_by_its_first_other_token(reward: ProcessReward, stored: Callable[..., Path]) -> None:
    silent = ProcessReward(reward.transformer.module, reward.tokenizer.hf, format=StepFormat(system=False))
    with pytest.raises(RewardError, match=r"token 0 is '<user>', stored '<system>'. Likely: .*system prompt"):
        silent.self_test(stored())


def test_a_missing_bos_is_named(reward: ProcessReward, tmp_path: Path) -> None:
    hf = byte_tokenizer()
    hf.add_special_tokens({"bos_token": "<bos>"})
    module = random_process_reward(hf, width=16, seed=2).transformer.module
    with_bos = byte_tokenizer()
    with_bos.add_special_tokens({"bos_token": "<bos>"})
    with_bos.chat_template = "<bos>" + str(with_bos.chat_template)
    ProcessReward(module, with_bos).record(tmp_path / "golden.json", ANSWERS)
    with pytest.raises(RewardError, match="stored '<bos>'. Likely: one bos too many or too few"):
        ProcessReward(module, hf).self_test(tmp_path / "golden.json")


def test_an_answer_that_cannot_be_judged_is_said(reward: ProcessReward, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="no step"):
        reward.record(tmp_path / "golden.json", [("?", "")])


CASE = {"question": "?", "answer": "5"}
MALFORMED = [
    [],
    {},
    {"cases": []},
    {"cases": [CASE]},
    {"cases": [{**CASE, "scores": []}]},
    {"cases": [{"scores": [1]}]},
]


@pytest.mark.parametrize("content", ["", *map(json.dumps, MALFORMED)])
def test_files_of_another_form_are_refused(reward: ProcessReward, tmp_path: Path, content: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="golden scores"):
        reward.self_test(path)
    with pytest.raises(ConfigurationError, match="golden scores"):
        reward.self_test(tmp_path / "nothing.json")
