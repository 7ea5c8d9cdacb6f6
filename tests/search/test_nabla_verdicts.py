"""Tools in the loop: where a verdict points, what it stops, and that no verdict does nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from nabla_agents import Budget, FinishReason, Nabla, Refinable, Rollout, Sampling, Score, Span
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
NAN = math.nan
LOCATED = Refinable(min_entropy=99.0)  # no row of five tokens has as much: only a verdict makes a position refinable


def wants(character: str, at: int, *, expected: bool = True, credit: float = 20.0) -> FixedReward:
    """A tool that wants one character at one place, and says where it misses it."""

    def judge(rollout: Rollout) -> Score:
        right = rollout.text[at : at + 1] == character
        span = Span(at, at + 1, -1.0, character if expected else None, credit=credit)
        return Score(float(right), verdict=float(right), verified=right, spans=() if right else (span,))

    return FixedReward(judge)


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("character", ["2", "3", "4"])
def test_the_very_next_rollout_has_the_text_that_the_tool_expects(
    toy: Callable[..., Any], character: str, at: int
) -> None:
    """However unlikely it is: the floor of 0 nats lets nothing else through."""
    for seed in (3, 5):
        made = toy(seed)
        assert made.text(made.greedy()) == "1111"
        strategy = Nabla(refinable=LOCATED, plausibility_floor=0.0)
        engine, backend = made.watched(wants(character, at), strategy=strategy)
        result = made.solve(engine, sampling=FOUR)
        token = "1234".index(character)
        assert backend.prefixes == [(), (*made.greedy()[:at], token)]
        assert result.text[at] == character
        assert (result.finish_reason, result.usage.gradient_passes) == (FinishReason.VERIFIED, 1)


def test_what_comes_first_in_the_text_is_tried_first(toy: Callable[..., Any]) -> None:
    """By its own row no token of a greedy text is promising, so a verdict's place is the first with a promise above 0;
    below 0, the places to its left have their turn before it.
    """
    made = toy(3)
    for min_promise, first in ((0.0, 2), (-6.0, 0)):
        strategy = Nabla(min_promise=min_promise)
        engine, backend = made.watched(wants("4", 2), strategy=strategy, embedding_terms=False)
        result = made.solve(engine, sampling=FOUR)
        assert len(backend.prefixes[1]) == first + 1
        assert result.finish_reason is FinishReason.VERIFIED


def test_every_accepted_correction_is_judged_anew(toy: Callable[..., Any]) -> None:
    """A tool that names only the first wrong character of three is asked again after each."""

    def judge(rollout: Rollout) -> Score:
        right = next((i for i in range(3) if rollout.text[i : i + 1] != "342"[i]), 3)
        span = Span(right, right + 1, -1.0, "342"[right : right + 1], credit=20.0)
        return Score(right / 3, verdict=right / 3, verified=right == 3, spans=(span,) if right < 3 else ())

    for seed in (3, 5):
        made = toy(seed)
        engine, backend = made.watched(FixedReward(judge), strategy=Nabla(refinable=LOCATED))
        result = made.solve(engine, sampling=FOUR)
        assert result.text.startswith("342")
        assert result.finish_reason is FinishReason.VERIFIED
        assert len(backend.rollouts) <= 4
        assert result.usage.gradient_passes == len(backend.rollouts) - 1
        assert all(step.accepted for step in result.trace)


@pytest.mark.parametrize("at", range(4))
def test_without_expected_text_the_written_token_is_pushed_down(toy: Callable[..., Any], at: int) -> None:
    """g(written) loses the credit of 30 nats, and the likeliest of the other tokens is next: g says nothing of them."""
    for seed in (3, 5):
        made = toy(seed)
        written = made.greedy()
        strategy = Nabla(refinable=LOCATED, plausibility_floor=None)
        engine, backend = made.watched(wants("9", at, expected=False, credit=30.0), strategy=strategy)
        result = made.solve(engine, sampling=FOUR, budget=Budget(rollouts=2))
        log_p = made.conditionals[written[:at]]
        new = max((v for v in range(5) if v != written[at]), key=lambda v: float(log_p[v]))
        assert backend.prefixes[1] == (*written[:at], new)
        assert result.trace[1].ranking_score == pytest.approx(30.0, abs=1e-4)


def test_what_a_tool_calls_right_or_has_no_plausible_other_is_left_alone(toy: Callable[..., Any]) -> None:
    made = toy(3)
    right = FixedReward(lambda r: Score(0.0, spans=(Span(1, 2, 1.0, credit=30.0),)))
    wrong = FixedReward(lambda r: Score(0.0, spans=(Span(1, 2, -1.0, credit=30.0),)))
    for reward, floor in ((right, None), (wrong, 0.0)):
        engine = made.engine(reward, strategy=Nabla(refinable=LOCATED, plausibility_floor=floor))
        assert made.solve(engine, sampling=FOUR).usage.rollouts == 1


@pytest.mark.parametrize("direction", ["none", "random"])
def test_a_control_is_not_steered_by_a_verdict(toy: Callable[..., Any], direction: Any) -> None:
    made = toy(3)
    engine = made.engine(wants("3", 1), strategy=Nabla(direction=DIRECTIONS[direction], refinable=LOCATED))
    assert made.solve(engine, sampling=FOUR).usage.rollouts == 1


# ── verified answers ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("direction", ["gradient", "none", "random"])
def test_a_verified_first_answer_stops_the_search(toy: Callable[..., Any], direction: Any) -> None:
    made = toy(3)
    reward = FixedReward(lambda r: Score(1.0, verdict=1.0, verified=True, explanation="1 of 1 tests passed"))
    strategy = Nabla(direction=DIRECTIONS[direction], min_promise=-9.0)
    result = made.solve(made.engine(reward, strategy=strategy), sampling=FOUR)
    assert (result.usage.rollouts, result.usage.gradient_passes) == (1, 0)
    assert (result.finish_reason, result.detail) == (FinishReason.VERIFIED, "1 of 1 tests passed")
    on = made.solve(made.engine(reward, strategy=strategy.replace(stop_when_verified=False)), sampling=FOUR)
    assert on.usage.rollouts > 1
    assert on.finish_reason is not FinishReason.VERIFIED


def test_a_verified_answer_stops_the_search_even_where_the_budget_ends(toy: Callable[..., Any]) -> None:
    made = toy(3)
    engine = made.engine(wants("2", 0), strategy=Nabla(refinable=LOCATED), budget=Budget(rollouts=2))
    assert made.solve(engine, sampling=FOUR).finish_reason is FinishReason.VERIFIED


def test_a_verified_answer_outranks_any_likelihood(toy: Callable[..., Any]) -> None:
    """The one verified completion is unlikely, and what is found beside it has a higher J."""
    made = toy(3)
    reward = FixedReward(lambda r: Score(0.0, verified=r.text.startswith("2")))
    result = made.solve(made.engine(reward, strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    assert result.text.startswith("2")
    assert result.log_likelihood < made.likelihoods[made.greedy()]
    assert result.finish_reason is FinishReason.VERIFIED


# ── no verdict ────────────────────────────────────────────────────────────────────────────────────────────────────────


def unjudged(rollout: Rollout) -> Score:
    """Could not judge, and yet says everything that would steer and stop if it could."""
    span = Span(0, 1, -1.0, "4", credit=50.0)
    return Score(NAN, verdict=1.0, verified=True, spans=(span,), explanation="the tool is away")


@pytest.mark.parametrize("acceptance", ["objective", "reward"])
def test_what_could_not_be_judged_neither_accepts_nor_steers_nor_stops(
    toy: Callable[..., Any], acceptance: Any
) -> None:
    for seed in (2, 3, 5):
        made = toy(seed)
        strategy = Nabla(min_promise=-5.0, plausibility_floor=5.0, acceptance=acceptance)
        silent = FixedReward(lambda r: Score(NAN))
        engine, backend = made.watched(FixedReward(unjudged), strategy=strategy)
        result = made.solve(engine, sampling=FOUR)
        unsteered, reference = made.watched(silent, strategy=strategy)
        made.solve(unsteered, sampling=FOUR)
        assert backend.ids == reference.ids
        assert len(backend.ids) > 1
        assert result.finish_reason is not FinishReason.VERIFIED
        refined = [step for step in result.trace if step.kind == "refine"]
        assert not any(step.accepted for step in refined)
        assert all(step.gain is not None and math.isnan(step.gain) for step in refined)
        assert result.token_ids == made.greedy()  # the first, with nothing to choose by
        assert result.score is not None
        assert result.score.explanation in ("the tool is away", "")


def test_a_sum_that_could_not_be_judged_is_not_verified_by_one_of_its_parts(toy: Callable[..., Any]) -> None:
    made = toy(3)
    vouches = FixedReward(lambda r: Score(1.0, verdict=1.0, verified=True))
    reward = vouches + FixedReward(lambda r: Score(NAN, explanation="no step to judge"))
    result = made.solve(made.engine(reward, strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    assert result.finish_reason is not FinishReason.VERIFIED
    assert result.usage.rollouts > 1


def test_whatever_was_judged_replaces_a_first_rollout_that_was_not(toy: Callable[..., Any]) -> None:
    made = toy(3)
    reward = FixedReward(lambda r: NAN if r.completion_ids == made.greedy() else -1e6)
    result = made.solve(made.engine(reward, strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    assert result.trace[1].accepted
    assert result.token_ids != made.greedy()


def test_no_proposal_that_was_not_judged_replaces_one_that_was(toy: Callable[..., Any]) -> None:
    made = toy(3)
    reward = FixedReward(lambda r: -1e6 if r.completion_ids == made.greedy() else NAN)
    result = made.solve(made.engine(reward, strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    assert result.usage.rollouts > 2
    assert result.token_ids == made.greedy()


def test_a_reward_that_breaks_on_every_proposal_leaves_the_first_answer(toy: Callable[..., Any]) -> None:
    made = toy(3)

    def judge(rollout: Rollout) -> float:
        if rollout.completion_ids != made.greedy():
            raise OSError("connection lost")
        return 0.0

    result = made.solve(made.engine(FixedReward(judge), strategy=Nabla(min_promise=-9.0)), sampling=FOUR)
    assert result.token_ids == made.greedy()
    broken = [step.score.explanation for step in result.trace if step.kind == "refine" and step.score is not None]
    assert broken
    assert set(broken) == {"FixedReward raised OSError: connection lost"}
