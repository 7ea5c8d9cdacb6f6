"""Where a tool says no and not where, a search opens anew until it says yes or the budget ends; for nothing else."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from nabla_agents import Budget, FinishReason, Nabla, NablaParallel, Result, Rollout, Sampling, Score, Span
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
STRATEGIES = {"nabla": Nabla(min_promise=99.0), "parallel": NablaParallel(min_promise=99.0, width=1)}  # no proposals


def passes(accepted: Callable[[Any], bool]) -> FixedReward:
    """A tool that says yes or no."""
    return FixedReward(
        lambda r: Score(
            float(accepted(r.completion_ids)), float(accepted(r.completion_ids)), accepted(r.completion_ids)
        )
    )


def kinds(result: Result) -> list[str]:
    return [step.kind for step in result.trace]


@pytest.mark.parametrize("name", STRATEGIES)
def test_openings_are_drawn_until_one_passes(toy: Callable[..., Any], name: str) -> None:
    """What passes is the n-th opening of a search whose every opening fails, for each n."""
    made = toy(0, scale=1.0)
    strategy = STRATEGIES[name]
    failing, backend = made.watched(passes(lambda ids: False), strategy=strategy)
    result = made.solve(failing, sampling=FOUR)
    drawn = backend.ids
    assert len(drawn) == 8
    assert backend.prefixes == [()] * 8
    assert (result.finish_reason, result.detail) == (FinishReason.BUDGET, "rollouts 8/8")
    assert drawn[0] == made.greedy()
    assert len(set(drawn)) > 3
    for n, wanted in enumerate(drawn):
        engine, backend = made.watched(passes(lambda ids, wanted=wanted: ids == wanted), strategy=strategy)
        result = made.solve(engine, sampling=FOUR)
        assert backend.ids == drawn[: drawn.index(wanted) + 1], n
        assert result.token_ids == wanted
        assert result.finish_reason is FinishReason.VERIFIED
        assert kinds(result) == ["rollout"] * len(backend.ids) + ["commit"]
        assert result.trace[-2].accepted


def test_a_parallel_search_draws_its_width_at_once(toy: Callable[..., Any]) -> None:
    made = toy(0, scale=1.0)
    engine, backend = made.watched(passes(lambda ids: False), strategy=NablaParallel(min_promise=99.0, width=3))
    made.solve(engine, sampling=FOUR)
    assert backend.batches == [1, 3, 3, 1]


def located(rollout: Rollout) -> Score:
    return Score(0.0, verdict=0.0, verified=False, spans=(Span(0, 1, -1.0, credit=1.0),))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "judge",
    [
        located,
        lambda r: Score(-1.0),  # a learned score
        lambda r: Score(0.0, verdict=0.0, verified=None),  # a tool that neither vouches nor objects
        lambda r: Score(float("nan"), verdict=0.0, verified=False),
    ],
    ids=["located", "learned", "neither", "not judged"],
)
def test_nothing_else_opens_anew(toy: Callable[..., Any], name: str, judge: Any) -> None:
    made = toy(0, scale=1.0)
    result = made.solve(made.engine(FixedReward(judge), strategy=STRATEGIES[name]), sampling=FOUR)
    assert (kinds(result), result.usage.rollouts) == (["rollout", "commit"], 1)
    assert result.detail == "nothing promising left"


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_the_same_text_would_come_again_none_is_drawn(toy: Callable[..., Any], name: str) -> None:
    made, no = toy(0, scale=1.0), passes(lambda ids: False)
    for strategy, sampling in (
        (STRATEGIES[name], FOUR.replace(temperature=0.0)),
        (STRATEGIES[name].replace(opening_temperature=0.0), FOUR),
        (STRATEGIES[name].replace(reopen=False), FOUR),
    ):
        assert made.solve(made.engine(no, strategy=strategy), sampling=sampling).usage.rollouts == 1


def test_nothing_is_committed_that_an_opening_may_replace(toy: Callable[..., Any]) -> None:
    """A tool that objects to all but one text: no text is committed before the end, and no change is tried twice."""
    opened = 0
    for seed in range(6):
        made = toy(seed)
        engine, backend = made.watched(passes(lambda ids: ids[0] == 2), strategy=Nabla(min_promise=-3.0))
        result = made.solve(engine, sampling=FOUR.replace(temperature=1.0), budget=Budget(rollouts=20), seed=seed)
        committed = [step.committed_text for step in result.trace]
        assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(committed))
        assert all(text == "" for step, text in zip(result.trace, committed, strict=True) if not step.done) or (
            result.finish_reason is FinishReason.VERIFIED
        )
        changes = [prefix for prefix in backend.prefixes if prefix]
        assert len(set(changes)) == len(changes)
        opened += backend.prefixes.count(()) - 1
    assert opened > 5


def test_what_was_committed_is_not_opened_again(toy: Callable[..., Any]) -> None:
    """A tool that first says where, and then only that: the text it had let pass has been streamed."""
    made = toy(3)
    first = made.greedy()

    def judge(rollout: Rollout) -> Score:
        spans = (Span(0, 1, -1.0, credit=30.0),) if rollout.completion_ids == first else ()
        return Score(0.0 if spans else 0.5, verdict=0.0 if spans else 0.5, verified=False, spans=spans)

    result = made.solve(made.engine(FixedReward(judge), strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    committed = [step.committed_text for step in result.trace]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(committed))
    assert kinds(result).count("rollout") == 1 or "" in committed[1:-1]


@pytest.mark.parametrize("direction", ["gradient", "random"])
def test_an_incumbent_that_stays_costs_one_gradient_pass(toy: Callable[..., Any], direction: Any) -> None:
    made = toy(0, scale=1.0)
    strategy = Nabla(min_promise=99.0, direction=DIRECTIONS[direction])
    engine = made.engine(
        FixedReward(lambda r: Score(float(r.completion_ids == made.greedy()), 0.0, False)), strategy=strategy
    )
    result = made.solve(engine, sampling=FOUR)
    assert result.usage.rollouts == 8
    assert result.usage.gradient_passes == 1
