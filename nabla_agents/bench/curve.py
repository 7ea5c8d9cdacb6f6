"""What a search would have returned, had it ended after each of its rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nabla_agents.search import Strategy
from nabla_agents.search.pool import Pool, Scored
from nabla_agents.types import Rollout, Score, Step

Point = tuple[bool, float | None, float | None]
"""Whether the answer is right, its reward (None: not judged) and its log-likelihood in nats (None: not known)."""


def chosen_after_each(strategy: Strategy, trace: Sequence[Step], likelihood_weight: float) -> list[int]:
    """For k = 1, 2, ... the index among the trace's rollouts of the one that is selected from the first k."""
    pool, indices, chosen = Pool(strategy.rule), dict[int, int](), list[int]()
    for i, step in enumerate(rollouts(trace)):
        entry = Scored(Rollout.from_text("", step.text), step.score, _objective(step, likelihood_weight))
        pool.add(entry)
        indices[id(entry)] = i
        selected = strategy.select(pool)
        chosen.append(i if selected is None else indices[id(selected)])
    return chosen


def rollouts(trace: Sequence[Step]) -> list[Step]:
    """The steps that have a completion of their own."""
    return [step for step in trace if step.kind != "commit"]


def points(strategy: Strategy, trace: Sequence[Step], right: Sequence[bool], likelihood_weight: float) -> list[Point]:
    """One point after each rollout; `right` judges the rollouts' texts."""
    steps = rollouts(trace)
    return [
        (right[i], reward_of(steps[i].score), known(steps[i].log_likelihood))
        for i in chosen_after_each(strategy, trace, likelihood_weight)
    ]


def reward_of(score: Score | None) -> float | None:
    return None if score is None else known(score.value)


def known(value: float) -> float | None:
    """Rounded to a millionth, which no comparison needs; None for what is no finite number."""
    return round(float(value), 6) if math.isfinite(value) else None


def _objective(step: Step, likelihood_weight: float) -> float:
    weighted = likelihood_weight * step.log_likelihood if likelihood_weight else 0.0
    return weighted + (0.0 if step.score is None else step.score.value)
