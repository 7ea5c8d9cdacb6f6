"""Power sampling against its own Markov chain, enumerated: it leaves p^α as it is, and the search walks by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from nabla_agents import Budget, PowerSampling, Sampling, Score
from nabla_agents.search.power_sampling import _State
from nabla_agents.testing import FixedReward
from tests.search.driving import performed, search_of

THREE = Sampling(max_tokens=3)
UNLIMITED = Budget(rollouts=None)
EOS = 4
Ids = tuple[int, ...]


class Chain:
    """Power sampling of completions of at most three tokens, in float64, from the model's conditionals alone."""

    def __init__(self, made: Any, alpha: float) -> None:
        self.made, self.alpha = replace(made, length=3), alpha
        self.p = {ids: row.exp().tolist() for ids, row in self.made.conditionals.items()}
        self.q = {ids: (row * alpha).softmax(-1).tolist() for ids, row in self.made.conditionals.items()}

    def texts(self, length: int, prefix: Ids = ()) -> list[Ids]:
        """What a prefix may become of so many tokens at most."""
        if len(prefix) >= length or EOS in prefix:
            return [prefix]
        return [ids for token in range(5) for ids in self.texts(length, (*prefix, token))]

    def chance(self, rows: dict[Ids, list[float]], ids: Ids, start: int = 0) -> float:
        return math.prod(rows[ids[:t]][ids[t]] for t in range(start, len(ids)))

    def target(self, length: int) -> dict[Ids, float]:
        """p^α, normalised."""
        weights = {ids: self.chance(self.p, ids) ** self.alpha for ids in self.texts(length)}
        return {ids: weight / sum(weights.values()) for ids, weight in weights.items()}

    def moved(self, law: dict[Ids, float], length: int) -> dict[Ids, float]:
        """The law of the chain one move later."""
        after = dict.fromkeys(law, 0.0)
        weights = {ids: self.chance(self.p, ids) ** self.alpha for ids in law}
        for ids, mass in law.items():
            for start in range(len(ids)):
                for other in self.texts(length, ids[:start]):
                    to, back = (
                        self.chance(self.q, other, start) / len(ids),
                        self.chance(self.q, ids, start) / len(other),
                    )
                    taken = min(1.0, weights[other] * back / (weights[ids] * to))
                    after[other] += mass * to * taken
                    after[ids] += mass * to * (1 - taken)
        return after

    def law(self, moves: int, lengths: tuple[int, ...] = (3,)) -> dict[Ids, float]:
        """Where the chain stands after so many moves at each length."""
        law: dict[Ids, float] = {(): 1.0}
        for length in lengths:
            longer = {}
            for ids, mass in law.items():
                for other in self.texts(length, ids):
                    longer[other] = longer.get(other, 0.0) + mass * self.chance(self.q, other, len(ids))
            law = longer
            for _ in range(moves):
                law = self.moved(law, length)
        return law


@pytest.mark.parametrize("alpha", [0.7, 1.0, 4.0])
def test_the_chain_leaves_the_sharpened_distribution_as_it_is(toy: Callable[..., Any], alpha: float) -> None:
    chain = Chain(toy(2), alpha)
    target = chain.target(3)
    assert chain.moved(target, 3) == pytest.approx(target, abs=1e-12)
    away = [sum(abs(law[ids] - target[ids]) for ids in target) for law in map(chain.law, range(4))]
    assert all(late < early or early < 1e-12 for early, late in pairwise(away))


@pytest.mark.parametrize(
    ("settings", "lengths", "seeds"),
    [
        ({"alpha": 3.0, "moves": 2}, (3,), 100),
        ({"alpha": 2.0, "moves": 1, "blocks": 3}, (1, 2, 3), 60),
        pytest.param({"alpha": 3.0, "moves": 3}, (3,), 400, marks=pytest.mark.slow),
        pytest.param({"alpha": 1.0, "moves": 1}, (3,), 400, marks=pytest.mark.slow),
        pytest.param({"alpha": 2.0, "moves": 2, "blocks": 2}, (2, 3), 300, marks=pytest.mark.slow),
    ],
)
def test_the_search_walks_by_the_chains_law(
    toy: Callable[..., Any], odds: Callable[..., float], settings: dict[str, Any], lengths: tuple[int, ...], seeds: int
) -> None:
    """A sound sampler fails at odds of 1e-6; one that takes no move is told apart where the two laws are."""
    made = toy(2)
    engine = made.engine(strategy=PowerSampling(**settings), budget=UNLIMITED)
    seen = [result.token_ids for result in made.solve_many(engine, range(seeds), sampling=THREE)]
    chain = Chain(made, settings["alpha"])
    law = chain.law(settings["moves"], lengths)
    assert sum(law.values()) == pytest.approx(1.0)
    assert odds(seen, law) > 1e-6
    if settings["alpha"] == 3.0:
        assert odds(seen, chain.law(0)) < 1e-4


@pytest.mark.parametrize(
    "sampling",
    [THREE, THREE.replace(temperature=0.6), THREE.replace(temperature=1.5, top_k=2), THREE.replace(min_p=0.2)],
)
def test_the_chance_of_a_move_is_that_by_which_it_was_drawn(toy: Callable[..., Any], sampling: Sampling) -> None:
    """The request's temperature and filters included: what they exclude cannot be drawn."""
    made, alpha = toy(2), 3.0
    chain, strategy = Chain(made, alpha), PowerSampling(alpha=alpha)
    temperature = sampling.temperature or 1 / alpha
    for ids in [(), (0,), (2, 1, 0), (3, EOS)]:
        search = search_of(made.model, made.prompt, sampling=sampling, seed=7)
        [entry] = performed(search.roll([ids], temperature=1 / alpha))
        written = entry.rollout.completion_ids
        log_q = performed(strategy._log_q(search, entry, 0))
        for t, token in enumerate(written):
            row = chain.made.conditionals[written[:t]] / temperature
            kept = row.softmax(-1)
            if sampling.top_k:
                kept = torch.where(row >= row.topk(2).values[-1], kept, 0.0)
            if sampling.min_p:
                kept = torch.where(kept >= 0.2 * kept.max(), kept, 0.0)
            assert math.exp(log_q[t]) == pytest.approx(float(kept[token] / kept.sum()), abs=1e-5)
        state = _State(entry, log_q)
        for start in range(len(written)):
            log_p = math.log(chain.chance(chain.p, written, start))
            expected = alpha * log_p - float(log_q[start:].sum()) - math.log(len(written))
            assert state.log_weight(start, alpha) == pytest.approx(expected, abs=1e-4)


def test_the_answer_is_where_the_chain_stands_whatever_a_reward_says(toy: Callable[..., Any]) -> None:
    made = toy(2)
    reward = FixedReward(lambda r: Score(float(len(r.text)), verdict=1.0, verified=True))
    engine = made.engine(reward, strategy=PowerSampling(alpha=3.0, moves=5), budget=UNLIMITED)
    refused = 0
    for seed in range(5):
        result = made.solve(engine, sampling=THREE, seed=seed)
        steps = [step for step in result.trace if step.kind == "rollout"]
        assert result.text == [step.text for step in steps if step.accepted][-1]
        assert (result.usage.rollouts, result.usage.reward_calls, result.usage.gradient_passes) == (6, 6, 0)
        refused += sum(not step.accepted for step in steps)
    assert refused > 5


@pytest.mark.parametrize("rollouts", [1, 2, 3, 5])
def test_whatever_the_rollouts_all_blocks_are_written_and_parts_are_not_judged(
    toy: Callable[..., Any], rollouts: int
) -> None:
    made = toy(2)
    reward = FixedReward(lambda r: Score(1.0))
    engine = made.engine(reward, strategy=PowerSampling(blocks=3, moves=4), budget=Budget(rollouts=rollouts))
    for seed in range(3):
        result = made.solve(engine, sampling=THREE, seed=seed)
        assert len(result.token_ids) == 3 or result.token_ids[-1] == EOS
        assert result.score is not None
        assert result.score.judged
        assert result.usage.rollouts == rollouts
        assert result.usage.reward_calls == rollouts - min(rollouts, 3) + 1 - max(0, rollouts - 3)


def test_temperature_0_stays_at_the_greedy_completion(toy: Callable[..., Any]) -> None:
    made = replace(toy(2), length=3)
    result = made.solve(made.engine(strategy=PowerSampling(moves=3)), sampling=THREE.replace(temperature=0.0), seed=1)
    assert result.token_ids == made.greedy()
