"""Directions add: their rows, with weights, and what tools locate once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nabla_agents import (
    ConfigurationError,
    FeedbackDirection,
    GradientDirection,
    Nabla,
    NoDirection,
    Sampling,
    Score,
)
from nabla_agents.search.direction import Directed, DirectionSum
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.search.pool import Scored
from nabla_agents.search.positions import Proposal
from nabla_agents.search.proposals import ProposalSettings, _is_worth
from tests.search.driving import performed, search_of


class Constant:
    """A direction of someone else: one row for every place, or silence."""

    name = "constant"

    def __init__(self, row: list[float] | None, **options: Any) -> None:
        self.row, self.options = row, options

    async def of(self, search: Any, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        if self.row is None:
            return None
        row = torch.tensor(self.row)
        return Directed(lambda positions, _: row.repeat(len(positions), 1), **self.options)


def directed(direction: Any, toy: Any, reward: Any = None) -> Directed | None:
    search = search_of(toy.model, toy.prompt, reward, sampling=Sampling(max_tokens=4))
    [entry] = performed(search.roll([()], temperature=0.0))
    return performed(direction.of(search, entry, 0, outcome_weight=0.0))


def rows(made: Directed | None) -> torch.Tensor:
    assert made is not None
    return made.rows([0, 1], torch.ones(2, 5, dtype=torch.bool))


def test_a_sum_is_the_weighted_sum_of_the_rows(toy: Callable[..., Any], linear: Any) -> None:
    made, table = toy(0), torch.randn(4, 5)
    a, b = Constant([1.0, 0, 0, 0, 2]), GradientDirection()
    sums = (a + 0.5 * b, b * 0.5 + a, DirectionSum(((1.0, a), (0.5, b))))
    expected = rows(directed(a, made)) + 0.5 * rows(directed(b, made, linear(table)))
    for total in sums:
        assert torch.allclose(rows(directed(total, made, linear(table))), expected, atol=1e-6)
    doubled = 2.0 * (a + NoDirection())
    assert torch.allclose(rows(directed(doubled, made)), 2 * rows(directed(a, made)))
    assert doubled.terms == ((2.0, a), (2.0, NoDirection()))


def test_what_is_silent_is_left_out_and_silence_alone_is_none(toy: Callable[..., Any]) -> None:
    made, silent = toy(0), Constant(None)
    a = Constant([1.0, 0, 0, 0, 0], threshold=0.5, credit={2: {1: 1.0}}, explains=True)
    total = directed(silent + (a + NoDirection()), made)
    assert total is not None
    assert torch.equal(rows(total), rows(directed(a, made)))
    assert (total.threshold, total.credit, total.explains, total.likelihood) == (0.5, {2: {1: 1.0}}, True, None)
    assert directed(silent + 2.0 * FeedbackDirection(), made) is None
    assert directed(0.0 * GradientDirection(), made) is None


def test_a_sum_with_a_silent_remark_is_the_search_without_it(toy: Callable[..., Any], table: Any) -> None:
    """And the objective's own is not added twice."""
    for direction in (GradientDirection() + FeedbackDirection(), FeedbackDirection()):
        made, traces = toy(2), []
        for strategy in (Nabla(direction=direction, min_promise=-9.0), Nabla(min_promise=-9.0)):
            result = made.solve(made.engine(table(1), strategy=strategy), sampling=Sampling(max_tokens=4))
            traces.append([(s.position, s.new_token, s.ranking_score, s.text) for s in result.trace])
        assert traces[0] == traces[1]
        assert len(traces[0]) > 3


def test_a_located_verdict_is_exempt_from_the_threshold(toy: Callable[..., Any]) -> None:

    directed = Directed(lambda positions, _: torch.zeros(len(positions), 5), credit={3: {1: 1.0}}, threshold=1.0)
    weak = [Proposal(position, 0, 1, promise=0.0, ranking_score=0.5) for position in (2, 3)]
    assert [_is_worth(p, ProposalSettings(), directed) for p in weak] == [False, True]


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "2", True, None])
@pytest.mark.untyped
def test_weights_are_finite_numbers(weight: Any) -> None:
    with pytest.raises(ConfigurationError, match="add and scale by finite numbers"):
        weight * GradientDirection()


@pytest.mark.untyped
def test_only_directions_add() -> None:
    with pytest.raises(ConfigurationError, match="add and scale"):
        GradientDirection() + 3.0
    with pytest.raises(ConfigurationError, match="direction"):
        Nabla(direction="feedback")


def test_names_say_what_is_not_as_usual(toy: Callable[..., Any]) -> None:
    """Files tell strategies apart by them."""
    assert list(DIRECTIONS) == ["gradient", "random", "none", "feedback", "peer", "gradient+feedback", "gradient+peer"]
    model = toy(0).model
    named = GradientDirection() + 2.0 * FeedbackDirection(beta=0.5, model=model)
    assert Nabla(direction=named).model_dump()["direction"] == f"gradient+2*feedback(model={model.name}, beta=0.5)"
    assert Nabla(direction=GradientDirection() + FeedbackDirection()) == Nabla(
        direction=DIRECTIONS["gradient+feedback"]
    )
    assert Nabla(direction=Constant([0.0])).model_dump()["direction"] == "constant"
    assert Score(0.0).feedback == ""
