"""Outcome credit against the exact policy gradient: all completions of a small vocabulary, all samples of them."""

import itertools
import random
from functools import cache

import pytest
import torch

from nabla_agents import Prompt, Rollout, Score
from nabla_agents.search.credit import outcome_credit

VOCAB, LENGTH = 3, 3
Ids = tuple[int, ...]
COMPLETIONS: list[Ids] = list(itertools.product(range(VOCAB), repeat=LENGTH))


def rollout(ids: Ids) -> Rollout:
    return Rollout(Prompt((), "", ()), ids, "")


def judged(ids: Ids, verdict: float | None, value: float = 0.0) -> tuple[Rollout, Score]:
    return rollout(ids), Score(value, verdict)


@cache
def logits(prefix: Ids) -> torch.Tensor:
    return torch.tensor([random.Random(f"logits {prefix} {v}").gauss(0, 1) for v in range(VOCAB)]).double()


@cache
def verdict(ids: Ids) -> float:
    return random.Random(f"verdict {ids}").random()


def probability(ids: Ids, given: Ids = (), node: Ids | None = None, row: torch.Tensor | None = None) -> torch.Tensor:
    """π(ids | given); `row` replaces the logits of one node."""
    total = torch.ones((), dtype=torch.float64)
    for t in range(len(given), len(ids)):
        here = row if row is not None and ids[:t] == node else logits(ids[:t])
        total = total * here.softmax(-1)[ids[t]]
    return total


@pytest.mark.parametrize("node", [(), (0,), (2, 1)])
@pytest.mark.parametrize("count", [2, 3])
def test_the_expectation_over_all_samples_is_the_exact_gradient(node: Ids, count: int) -> None:
    """E over every tuple of `count` completions through the node, against autograd of Σ_y π(y) r(y) in its logits."""
    through = [ids for ids in COMPLETIONS if ids[: len(node)] == node]
    row = logits(node).clone().requires_grad_()
    expected_verdict = sum(probability(ids, node, node, row) * verdict(ids) for ids in through)
    assert isinstance(expected_verdict, torch.Tensor)
    [exact] = torch.autograd.grad(expected_verdict, row)

    weights = {ids: float(probability(ids, node)) for ids in through}
    mean = torch.zeros(VOCAB, dtype=torch.float64)
    for sample in itertools.product(through, repeat=count):
        credit = outcome_credit(sample[0], len(node), [judged(ids, verdict(ids)) for ids in sample])
        for token, nats in credit.get(len(node), {}).items():
            mean[token] += nats * torch.tensor([weights[ids] for ids in sample], dtype=torch.float64).prod()
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)


def test_the_credit_of_every_node_is_the_formula_with_its_baseline() -> None:
    """The definition, term in π included, which the function leaves out because it vanishes."""
    pool = [(0, 1, 2), (0, 1, 1), (0, 2, 2), (1, 1, 1), (0, 1, 2)]
    found = outcome_credit(pool[0], 0, [judged(ids, verdict(ids) + i) for i, ids in enumerate(pool)])
    for t in range(LENGTH):
        through = [(ids, verdict(ids) + i) for i, ids in enumerate(pool) if ids[:t] == pool[0][:t]]
        policy = logits(pool[0][:t]).softmax(-1)
        row = torch.zeros(VOCAB, dtype=torch.float64)
        for k, (ids, r) in enumerate(through):
            others = [other for j, (_, other) in enumerate(through) if j != k]
            advantage = r - sum(others) / len(others)
            row += advantage * (torch.eye(VOCAB, dtype=torch.float64)[ids[t]] - policy) / len(through)
        for v in range(VOCAB):
            assert found.get(t, {}).get(v, 0.0) == pytest.approx(float(row[v]), abs=1e-12), (t, v)


def test_by_hand() -> None:
    """Node (): A = 1 - 0 for the first and -1 for the second, over two. Node (1,): one rollout only."""
    pool = [judged((1, 5), 1.0), judged((2, 5), 0.0)]
    assert outcome_credit((1, 5), 0, pool) == {0: {1: 0.5, 2: -0.5}}
    assert outcome_credit((2, 5), 0, pool) == {0: {1: 0.5, 2: -0.5}}
    assert outcome_credit((1, 5), 1, pool) == {}


def test_three_rollouts_by_hand() -> None:
    """Verdicts 1, 0, 0.5 of tokens 7, 7, 8: A = 0.75, -0.75, 0; the two sevens cancel."""
    pool = [judged((7,), 1.0), judged((7,), 0.0), judged((8,), 0.5)]
    assert outcome_credit((7,), 0, pool) == {}
    pool = [judged((7,), 1.0), judged((7,), 0.5), judged((8,), 0.0)]
    assert outcome_credit((7,), 0, pool) == {0: {7: pytest.approx(0.25), 8: pytest.approx(-0.25)}}


@pytest.mark.parametrize(
    "pool",
    [
        [],
        [judged((1, 1), 1.0)],
        [judged((1, 1), 1.0), judged((1, 1), 0.0)],  # the same tokens, judged differently
        [judged((1, 1), 0.5), judged((2, 1), 0.5)],  # equally good
        [judged((1, 1), 1.0), (rollout((2, 1)), None)],
        [judged((1, 1), None, 1.0), judged((2, 1), None, 0.0)],  # learned scores only
        [judged((1, 1), 1.0), (rollout((2, 1)), Score(float("nan"), 0.0))],  # not judged
        [judged((1, 1), 1.0), judged((), 0.0)],  # nothing after the prefix
    ],
)
def test_nothing_is_said_where_nothing_is_known(pool: list[tuple[Rollout, Score | None]]) -> None:
    assert outcome_credit((1, 1), 0, pool) == {}


def test_a_rollout_that_ends_says_nothing_beyond_its_end() -> None:
    pool = [judged((1, 2), 1.0), judged((1, 3), 0.0), judged((1,), 0.9)]
    assert outcome_credit((1, 2), 0, pool) == {1: {2: 0.5, 3: -0.5}}


def test_only_rollouts_through_the_committed_prefix_count() -> None:
    pool = [judged((1, 2), 1.0), judged((1, 3), 0.0), judged((2, 2), 0.0)]
    assert outcome_credit((1, 2), 1, pool) == {1: {2: 0.5, 3: -0.5}}


def test_long_completions_cost_linear_time() -> None:
    """200 rollouts of 5,000 tokens; a walk that compares whole prefixes at each position takes minutes."""
    same = tuple(range(5000))
    pool = [judged((*same, i), float(i)) for i in range(200)]
    assert set(outcome_credit((*same, 0), 0, pool)) == {5000}
