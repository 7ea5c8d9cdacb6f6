"""Process reward models: every step's score against plain transformers on ids that are written out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nabla_agents import ConfigurationError, LanguageModel, ProcessReward
from nabla_agents.testing import byte_tokenizer, random_model, random_process_reward, word_tokenizer
from tests.rewards.learned.answers import completed, ids_of

WORDS = ["a", "b", "c", ".", ";", "\n", "\n\n"]
A, B, C, DOT, SEMICOLON, BREAK, BREAKS = range(7)
TOKENIZER = word_tokenizer(WORDS)
EOS = int(TOKENIZER.convert_tokens_to_ids("<eos>"))


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return random_model(tokenizer=TOKENIZER, width=16, layers=1)


def plain_logits(reward: Any, ids: Sequence[int]) -> torch.Tensor:
    """What the transformers model itself says about these ids, one sequence without cache or padding."""
    with torch.no_grad():
        return reward.transformer.module(input_ids=torch.tensor([list(ids)])).logits[0].double()


def step_probabilities(logits: torch.Tensor, positions: Sequence[int]) -> list[float]:
    """P(right) by hand: the sigmoid of one label, or the softmax's second of two."""
    rows = [[float(x) for x in logits[p]] for p in positions]
    return [1 / (1 + math.exp(-row[0] if len(row) == 1 else row[0] - row[1])) for row in rows]


AGGREGATE = {"min": min, "mean": lambda p: sum(p) / len(p), "product": math.prod, "last": lambda p: p[-1]}


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_step_scores_and_their_aggregates_equal_plain_transformers(
    policy: LanguageModel, architecture: Any, labels: int
) -> None:
    """Ragged rollouts in one batch; steps end at the line break and, where something follows, at the end."""
    cases = [
        ([A, B, BREAK, C, BREAK], [2, 4]),
        ([A, BREAK, B, BREAK, C, A, B], [1, 3, 6]),
        ([C], [0]),
        ([A, B, C, A, B, C, BREAK], [6]),
    ]
    rollouts = [completed(policy, ids, "abc"[: i + 1]) for i, (ids, _) in enumerate(cases)]
    for aggregation, combine in AGGREGATE.items():
        reward = random_process_reward(
            TOKENIZER, architecture, width=16, labels=labels, aggregation=aggregation, seed=labels
        ).bind(policy)
        expected = []
        for rollout, (ids, ends) in zip(rollouts, cases, strict=True):
            logits = plain_logits(reward, [*rollout.prompt.ids, *ids, EOS])
            expected.append(combine(step_probabilities(logits, [len(rollout.prompt.ids) + e for e in ends])))
        scores = reward.score(rollouts)
        assert [s.value for s in scores] == pytest.approx(expected, abs=1e-5)
        assert [s.usage.reward_calls for s in scores] == [1] * 4
        assert (len({round(v, 3) for v in expected}), all(0 < v < 1 for v in expected)) == (4, True)


# completion tokens, separator, last token of each step, character ranges of the steps
STEPS = [
    ([A, DOT, B, DOT], ".", [1, 3], [(0, 2), (2, 4)]),  # trailing
    ([A, DOT, B], ".", [1, 2], [(0, 2), (2, 3)]),  # the last step is not closed
    ([A, B], ".", [1], [(0, 2)]),  # absent
    ([A, DOT, DOT, B], ".", [1, 3], [(0, 2), (2, 4)]),  # doubled: nothing lies between
    ([DOT, A, DOT], ".", [2], [(0, 3)]),  # leading
    ([A, DOT, BREAK, B], ".", [1, 3], [(0, 2), (2, 4)]),
    ([A, BREAKS, B], "\n", [1, 2], [(0, 2), (2, 4)]),  # doubled within one token: scored once
    ([A, BREAKS, B], "\n\n", [1, 2], [(0, 3), (3, 4)]),
    ([A, BREAK, BREAK, B, BREAK], "\n\n", [2, 4], [(0, 3), (3, 5)]),  # one separator over two tokens
    ([A, BREAK, B], "\n\n", [2], [(0, 3)]),
    ([A, DOT, SEMICOLON, DOT, B], ".;.", [3, 4], [(0, 4), (4, 5)]),
    ([A, DOT, SEMICOLON, DOT, SEMICOLON, DOT, B], ".;.", [3, 6], [(0, 4), (4, 7)]),  # overlapping ones do not count
]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "cut"])
@pytest.mark.parametrize(("ids", "separator", "ends", "ranges"), STEPS, ids=repr)
def test_steps_end_at_separators(
    policy: LanguageModel,
    ids: list[int],
    separator: str,
    ends: list[int],
    ranges: list[tuple[int, int]],
    ended: bool,
) -> None:
    reward = random_process_reward(TOKENIZER, width=16, layers=1, separator=separator).bind(policy)
    rollout = completed(policy, ids, ended=ended)
    logits = plain_logits(reward, [*rollout.prompt.ids, *ids])
    probabilities = step_probabilities(logits, [len(rollout.prompt.ids) + e for e in ends])
    [score] = reward.score([rollout])
    assert score.value == pytest.approx(math.prod(probabilities), abs=1e-5)
    assert [(s.start, s.end) for s in score.spans] == ranges
    assert [s.value for s in score.spans] == pytest.approx([2 * p - 1 for p in probabilities], abs=1e-5)
    assert {s.credit for s in score.spans} == {0.0}  # a learned score steers by its gradient, not by located verdicts


@pytest.mark.parametrize("ids", [[], [BREAK], [BREAKS, BREAK]], ids=repr)
def test_a_completion_without_a_step_is_not_judged(policy: LanguageModel, ids: list[int]) -> None:
    reward = random_process_reward(TOKENIZER, width=16, layers=1).bind(policy)
    [score] = reward.score([completed(policy, ids)])
    assert math.isnan(score.value)
    assert "no step" in score.explanation


def test_a_completion_that_ends_in_half_a_character_is_judged() -> None:
    """The length may cut a character of several tokens; its bytes are text of the last step."""
    tokenizer = byte_tokenizer()
    policy = random_model(tokenizer=tokenizer, width=16, layers=1)
    reward = random_process_reward(tokenizer, width=16, layers=1).bind(policy)
    for text, kept in (("a\nbé", -1), ("é", -1), ("a\n€", -2)):
        ids = ids_of(tokenizer, text)[:kept]
        rollout = completed(policy, ids, ended=False)
        [score] = reward.score([rollout])
        steps = text.count("\n") + 1
        assert len(score.spans) == steps
        logits = plain_logits(reward, [*rollout.prompt.ids, *ids])
        ends = [len(rollout.prompt.ids) + text.encode().index(b"\n")] if steps == 2 else []
        assert score.value == pytest.approx(math.prod(step_probabilities(logits, [*ends, len(logits) - 1])), abs=1e-5)
        assert reward.gradient([rollout], [0], []) != [None]


@pytest.mark.untyped
@pytest.mark.parametrize("bad", [{"separator": ""}, *({"aggregation": a} for a in ("median", "softmin", 3))], ids=repr)
def test_settings_of_a_process_reward_that_cannot_work_are_refused(bad: dict[str, Any]) -> None:
    module = random_process_reward(TOKENIZER, width=16, layers=1).transformer.module
    with pytest.raises(ConfigurationError, match="non-empty separator and one of min, mean, product, last"):
        ProcessReward(module, TOKENIZER, **bad)


def test_loaded_from_a_folder_it_has_the_settings_that_it_is_given(policy: LanguageModel, tmp_path: Path) -> None:
    rollout = completed(policy, [A, DOT, B])
    reward = random_process_reward(TOKENIZER, "llama", width=16, layers=1, separator=".", aggregation="min")
    reward.transformer.module.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = ProcessReward.from_pretrained(tmp_path, separator=".", aggregation="min", min_coverage=0.9)
    assert loaded.score([rollout])[0].value == pytest.approx(reward.score([rollout])[0].value, abs=1e-6)
    assert loaded.model.min_coverage == 0.9
