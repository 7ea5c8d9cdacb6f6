"""Which positions are refined and what they propose: borders by hand, proposals against plain loops."""

import math

import pytest
import torch

from nabla_agents import ConfigurationError, Refinable
from nabla_agents.search.positions import Proposal, best_alternatives, plausible

INF = math.inf
CERTAIN, TWO, THREE, FOUR = [0.0, -INF, -INF, -INF], [1.0, 1.0, -INF, -INF], [2.0, 2.0, 2.0, -INF], [0.0] * 4
ROWS = torch.tensor(
    [CERTAIN, TWO, THREE, FOUR]
)  # entropies 0, ln 2, ln 3, ln 4; largest probabilities 1, 1/2, 1/3, 1/4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("tests", "selected"),
    [
        ({}, [True, True, True, True]),
        ({"min_entropy": 0.0}, [False, True, True, True]),
        ({"min_entropy": math.log(2) - 1e-5}, [False, True, True, True]),
        ({"min_entropy": math.log(2) + 1e-5}, [False, False, True, True]),
        ({"min_entropy": math.log(4) + 1e-5}, [False, False, False, False]),
        ({"max_probability": 1.0}, [True, True, True, True]),
        ({"max_probability": 0.9999}, [False, True, True, True]),
        ({"max_probability": 0.5}, [False, True, True, True]),  # the border itself is refinable
        ({"max_probability": 0.4999}, [False, False, True, True]),
        ({"min_entropy": 0.25, "max_probability": 0.34}, [False, False, True, True]),
        ({"min_entropy": 1.2, "max_probability": 0.97}, [False, False, False, True]),
    ],
    ids=repr,
)
def test_a_position_is_refined_if_its_row_passes_every_test(
    tests: dict[str, float], selected: list[bool], dtype: torch.dtype
) -> None:
    assert Refinable(**tests).select(ROWS.to(dtype)).tolist() == selected


def test_the_published_border_of_entropy() -> None:
    """Two tokens of probability p and 1 - p have 0.25 nats at p = 0.0687…; above it passes, below it not."""
    low, high = 0.0, 0.5
    for _ in range(60):
        p = (low + high) / 2
        below = -p * math.log(p) - (1 - p) * math.log(1 - p) < 0.25
        low, high = (p, high) if below else (low, p)
    rows = torch.tensor([[low * 0.999, 1 - low * 0.999], [low * 1.001, 1 - low * 1.001]]).log()
    assert Refinable(min_entropy=0.25).select(rows).tolist() == [False, True]


@pytest.mark.parametrize("bad", [{"min_entropy": -0.1}, {"max_probability": 0.0}, {"max_probability": 1.5}], ids=repr)
def test_borders_that_cannot_be_met_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        Refinable(**bad)


def test_the_plausibility_floor_counts_from_the_written_token() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0, -4.0, -INF]]).repeat(4, 1)
    written = torch.tensor([0, 1, 3, 0])
    allowed = plausible(logits, written, 3.0 + 1e-4)
    assert allowed.tolist() == [
        [False, True, True, False, False],
        [True, False, True, False, False],
        [True, True, True, False, False],  # all of them likelier than the written one
        [False, True, True, False, False],
    ]
    assert plausible(logits, written, 3.0 - 1e-4)[0].tolist() == [False, True, False, False, False]
    assert plausible(logits, written, 0.0)[1].tolist() == [True, False, False, False, False]


def test_without_a_floor_everything_but_the_masked_and_the_written_token_is_allowed() -> None:
    logits = torch.tensor([[3.0, -50.0, -INF]])
    assert plausible(logits, torch.tensor([0]), None).tolist() == [[False, True, False]]
    assert plausible(logits, torch.tensor([1]), None).tolist() == [[True, False, False]]


def test_the_written_token_is_never_allowed_nor_proposed() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, gradient = torch.randn(2, 50, 6, generator=generator)
    written = torch.randint(6, (50,), generator=generator)
    for floor in (None, 0.0, 1.0, 100.0):
        allowed = plausible(logits, written, floor)
        assert not allowed[torch.arange(50), written].any()
        for proposal in best_alternatives(range(50), written, logits, logits, gradient, allowed):
            assert proposal.new != proposal.old == int(written[proposal.position])


def test_proposals_equal_a_plain_loop() -> None:
    """For 60 random rows: the allowed token with the largest refined logit, and the differences it promises."""
    generator = torch.Generator().manual_seed(1)
    logits, refined, gradient = torch.randn(3, 60, 7, generator=generator, dtype=torch.float64)
    written = torch.randint(7, (60,), generator=generator)
    allowed = torch.rand(60, 7, generator=generator) < 0.3
    positions = [3 * i + 5 for i in range(60)]
    expected = []
    for i, position in enumerate(positions):
        old = int(written[i])
        candidates = [v for v in range(7) if bool(allowed[i, v])]
        if candidates:
            new = max(candidates, key=lambda v: float(refined[i, v]))
            promise, gain = refined[i, new] - refined[i, old], gradient[i, new] - gradient[i, old]
            odds = float(logits[i, new]) - float(logits[i, old])
            loss = -float(gradient[i, old])
            expected.append(Proposal(position, old, new, float(promise), float(gain), odds, loss=loss))
    assert 0 < len(expected) < 60
    assert best_alternatives(positions, written, logits, refined, gradient, allowed) == expected


@pytest.mark.parametrize("count", [2, 3, 9])
def test_several_alternatives_of_a_place_come_best_first(count: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, refined, gradient = torch.randn(3, 20, 7, generator=generator)
    written = torch.randint(7, (20,), generator=generator)
    allowed = torch.rand(20, 7, generator=generator) < 0.4
    expected = []
    for i in range(20):
        candidates = [v for v in range(7) if bool(allowed[i, v])]
        expected += [(i, v) for v in sorted(candidates, key=lambda v, i=i: -float(refined[i, v]))[:count]]
    made = best_alternatives(range(20), written, logits, refined, gradient, allowed, count=count)
    assert [(p.position, p.new) for p in made] == expected
    for p in made:
        assert p.ranking_score == pytest.approx(float(gradient[p.position, p.new] - gradient[p.position, p.old]))
        assert p.promise == pytest.approx(float(refined[p.position, p.new] - refined[p.position, p.old]))


def test_a_position_without_an_allowed_token_proposes_nothing() -> None:
    refined = torch.tensor([[5.0, 1.0], [5.0, 1.0]])
    allowed = torch.tensor([[False, False], [False, True]])
    proposals = best_alternatives([4, 9], torch.tensor([0, 0]), refined, refined, torch.zeros(2, 2), allowed)
    assert [(p.position, p.old, p.new, p.promise) for p in proposals] == [(9, 0, 1, -4.0)]
    certain = plausible(torch.tensor([[0.0, -INF]]), torch.tensor([0]), None)
    rows = torch.zeros(1, 2)
    assert best_alternatives([0], torch.tensor([0]), rows, rows, rows, certain) == []
