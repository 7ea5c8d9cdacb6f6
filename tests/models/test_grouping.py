"""Rows of like length together: every row once, in order, and less padding than in one batch."""

import random
from collections.abc import Sequence

import pytest
import torch

from nabla_agents import Rollout
from nabla_agents.models.decoding import _evened  # pyright: ignore[reportPrivateUsage]
from nabla_agents.models.grouping import ENOUGH, by_length
from nabla_agents.testing import random_model


@pytest.mark.parametrize("seed", range(20))
def test_every_row_has_its_own_result_and_no_group_pads_much(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.choice([3, 50, 90, 200, 400]) + chance.randint(0, 20) for _ in range(chance.randint(1, 60))]
    groups: list[list[int]] = []

    def operation(rows: Sequence[int], doubled: Sequence[int]) -> list[int]:
        groups.append([lengths[i] for i in rows])
        return [i + d for i, d in zip(rows, doubled, strict=True)]

    rows = list(range(len(lengths)))
    assert by_length(lengths, operation, rows, [2 * i for i in rows]) == [3 * i for i in rows]
    assert sorted(length for group in groups for length in group) == sorted(lengths)
    for group in groups:
        full = next((n for n in range(1, len(group) + 1) if n * max(group) >= ENOUGH), len(group))
        assert all(length >= 0.85 * max(group) for length in group[full:])
        assert group == sorted(group, reverse=True)
    assert len(groups) == 1 or sum(map(max, groups)) > 0


def test_few_tokens_are_one_pass() -> None:
    calls: list[int] = []

    def operation(rows: Sequence[int]) -> list[int]:
        calls.append(len(rows))
        return list(rows)

    assert by_length([50, 10, 1, 1], operation, [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert by_length([], operation, []) == []
    assert calls == [4]


def test_gradients_and_log_probs_of_long_and_short_rows_are_those_alone() -> None:
    model = random_model(vocabulary=("a", "b", "cd", "e"), context_length=512)
    generator = torch.Generator().manual_seed(0)
    rollouts = []
    for length in (300, 20, 290, 5, 260, 30, 150):
        ids = tuple(torch.randint(4, (length,), generator=generator).tolist())
        rollouts.append(Rollout(model.prompt("ab"), ids, model.tokenizer.decode(ids)))
    together = model.likelihood_gradient(rollouts, [0] * 7)
    log_probs = model.token_log_probs(rollouts)
    assert len({g.usage.lm_forward_tokens for g in together}) > 1  # there were groups
    for rollout, gradient, (found, _) in zip(rollouts, together, log_probs, strict=True):
        [alone] = model.likelihood_gradient([rollout], [0])
        at = [0, len(rollout.completion_ids) // 2, len(rollout.completion_ids) - 1]
        torch.testing.assert_close(gradient.gradient.rows(at), alone.gradient.rows(at), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found, model.token_log_probs([rollout])[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([64], [64]),
        ([0, 0, 0], [0, 0, 0]),
        ([4, 4, 3], [4, 4, 3]),
        ([63, 0, 0, 0], [2, 0, 0, 0]),  # 6 of 12 places are wanted
        ([8, 8, 0, 0], [8, 8, 0, 0]),  # 20 of 36
    ],
)
def test_long_guesses_of_a_few_rows_do_not_pad_the_others(given: list[int], expected: list[int]) -> None:
    assert [len(g) for g in _evened([(7,) * n for n in given])] == expected
