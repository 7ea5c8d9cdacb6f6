"""What would have been returned after each rollout, by the strategy's own selection."""

from __future__ import annotations

import math

from nabla_agents import BestOfN, Nabla, SelfConsistency, Strategy
from nabla_agents.bench.run import course
from nabla_agents.types import Score, Step


def step(text: str, value: float, nats: float = -1.0, *, verified: bool | None = None) -> Step:
    return Step(
        kind="rollout", committed_text="", log_likelihood=nats, score=Score(value, verified=verified), text=text
    )


def chosen(strategy: Strategy, tried: list[Step], likelihood_weight: float = 1.0) -> list[int]:
    """The indices of what would have been returned: each rollout has a reward of its own."""
    values = [step.score.value for step in tried if step.score is not None]
    return [values.index(value) for _, value, _ in course(strategy, tried, [False] * len(tried), likelihood_weight)]


def test_best_of_n_keeps_the_best_so_far() -> None:
    trace = [step("a", 1.0), step("b", 0.5), step("c", 2.0)]
    right = [True, False, False]
    assert course(BestOfN(n=3), trace, right, 1.0) == [(True, 1.0, -1.0), (True, 1.0, -1.0), (False, 2.0, -1.0)]


def test_the_objective_weighs_likelihood_and_a_verified_answer_goes_first() -> None:
    trace = [step("a", 1.0, -1.0), step("b", 1.5, -2.0), step("c", 0.0, -9.0, verified=True)]
    assert chosen(Nabla(), trace, 1.0) == [0, 0, 2]
    assert chosen(Nabla(), trace, 0.1) == [0, 1, 2]
    assert chosen(Nabla(acceptance="reward"), trace, 1.0) == [0, 1, 1]


def test_a_vote_is_taken_anew_after_each() -> None:
    trace = [step(f"Answer: {n}", -float(i), -float(i)) for i, n in enumerate((7, 8, 8))]
    assert chosen(SelfConsistency(n=3), trace, 1.0) == [0, 0, 1]


def test_what_could_not_be_judged_is_no_number() -> None:
    assert course(BestOfN(n=1), [step("a", math.nan, math.nan)], [False], 1.0) == [(False, None, None)]
