"""The batched search against a plain loop over enumerated conditionals, the reward's own table and objectives."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nabla_agents import (
    Budget,
    FinishReason,
    GradientDirection,
    MirrorDTO,
    NablaParallel,
    NoDirection,
    Result,
    Rollout,
    Sampling,
    Score,
    Step,
)
from nabla_agents.search.directions import DIRECTIONS
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
UNLIMITED = Budget(rollouts=None)
TOKENS = ("1", "2", "3", "4", "<eos>")
TABLES = [2.0 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]


def refinements(result: Result) -> list[Step]:
    return [step for step in result.trace if step.kind == "refine"]


def ranked(made: Any, strategy: NablaParallel, table: Any, incumbent: Any) -> list[tuple[float, Any]]:
    """Every position's best other token as (promise, prefix), best first; π·exp(β·g), g = log π + the table's row."""
    found = []
    for t, old in enumerate(incumbent):
        log_p = made.conditionals[incumbent[:t]]
        g = (log_p + table[t]) * (strategy.direction == GradientDirection())
        refined = log_p + strategy.dto.beta * g
        near = [v for v in range(5) if v != old and log_p[v] >= log_p[old] - strategy.plausibility_floor]
        if near:
            new = max(near, key=lambda v: float(refined[v]))
            found.append((float(refined[new] - refined[old]), (*incumbent[:t], new)))
    return sorted((f for f in found if f[0] > strategy.min_promise), reverse=True)


def plain_loop(made: Any, strategy: NablaParallel, table: Any, j: dict[Any, float]) -> Iterator[list[Any]]:
    """The completions of each batch."""
    incumbent, tried, improved = made.greedy(), set(), True
    while improved:
        improved = False
        fresh = [prefix for _, prefix in ranked(made, strategy, table, incumbent) if prefix not in tried]
        for first in range(0, len(fresh), strategy.width):
            batch = fresh[first : first + strategy.width]
            tried.update(batch)
            candidates = [made.greedy(prefix) for prefix in batch]
            yield candidates
            best = max(candidates, key=j.__getitem__)
            if improved := j[best] > j[incumbent]:
                incumbent = best
                break


@pytest.mark.parametrize("direction", ["gradient", "none"])
@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_every_batch_is_that_of_a_plain_loop_over_the_tables(
    toy: Callable[..., Any], linear: Any, width: int, direction: Any
) -> None:
    """Σ log π + Σ table[t, y_t] without embedding terms: its gradient is log π + the table's row, exactly."""
    strategy = NablaParallel(width=width, direction=DIRECTIONS[direction], min_promise=-5.0, dto=MirrorDTO(beta=0.7))
    sizes = []
    for seed in range(6):
        made, table = toy(seed), TABLES[seed]
        j = made.objective(linear(table).value)
        engine, backend = made.watched(linear(table), strategy=strategy, budget=UNLIMITED, embedding_terms=False)
        result = made.solve(engine, sampling=FOUR)
        batches = list(plain_loop(made, strategy, table, j))
        assert backend.ids == [made.greedy(), *(ids for batch in batches for ids in batch)]
        assert backend.batches == [1, *map(len, batches)]
        assert result.token_ids == max(backend.ids, key=j.__getitem__)
        assert result.usage.gradient_passes == (direction == "gradient") * (1 + accepted(result))
        assert result.detail == "nothing promising left"
        sizes += backend.batches[1:]
    assert max(sizes) == min(width, 4)


def accepted(result: Result) -> int:
    return sum(step.accepted for step in refinements(result))


@pytest.mark.parametrize("direction", ["gradient", "random", "none"])
def test_at_most_one_change_of_a_batch_is_kept_and_it_is_the_best(
    toy: Callable[..., Any], table: Callable[..., Any], value: Callable[..., float], direction: Any
) -> None:
    kept = 0
    for seed in range(8):
        made = toy(seed % 5)
        j = made.objective(lambda ids, seed=seed: value(ids, seed), 0.5)
        strategy = NablaParallel(direction=DIRECTIONS[direction], min_promise=-6.0, width=3)
        engine, backend = made.watched(table(seed), strategy=strategy, likelihood_weight=0.5)
        result = made.solve(engine, sampling=FOUR.replace(temperature=1.2), seed=seed)
        steps, incumbent, at = iter(refinements(result)), backend.ids[0], 1
        for size in backend.batches[1:]:
            candidates, at = backend.ids[at : at + size], at + size
            verdicts = [next(steps) for _ in candidates]
            better = [ids for ids in candidates if j[ids] > j[incumbent]]
            assert [s.accepted for s in verdicts].count(True) == (1 if better else 0)
            for step, ids in zip(verdicts, candidates, strict=True):
                assert step.gain == pytest.approx(j[ids] - j[incumbent], abs=1e-4)
                assert step.accepted == (bool(better) and ids == max(candidates, key=j.__getitem__))
            if better:
                incumbent = max(candidates, key=j.__getitem__)
                kept += 1
        assert result.token_ids == max(backend.ids, key=j.__getitem__) == incumbent
        assert result.usage.rollouts == len(backend.rollouts) <= 8
        assert len(set(backend.prefixes)) == len(backend.prefixes)  # nothing is tried twice
    assert kept > 3


@pytest.mark.parametrize("rank", ["promise", "ranking_score", "loss"])
@pytest.mark.parametrize("alternatives", [1, 2, 3])
def test_a_branch_set_is_one_batch_of_places_and_tokens(
    toy: Callable[..., Any], linear: Any, rank: Any, alternatives: int
) -> None:
    """Best first by promise, by gain, or by what the gradient takes from the written token of the place."""
    made, table = toy(4), TABLES[4]
    options = {"width": 5, "alternatives": alternatives, "rank": rank, "min_promise": -50.0, "plausibility_floor": None}
    engine, backend = made.watched(linear(table), strategy=NablaParallel(**options), embedding_terms=False)
    made.solve(engine, sampling=FOUR, budget=Budget(rollouts=6))
    ids, expected = made.greedy(), []
    for t, old in enumerate(ids):
        log_p = made.conditionals[ids[:t]]
        g = log_p + table[t]
        refined = log_p + g
        others = sorted((v for v in range(5) if v != old), key=lambda v, row=refined: -float(row[v]))[:alternatives]
        keys = {
            "promise": lambda v, row=refined, old=old: float(row[v] - row[old]),
            "ranking_score": lambda v, row=g, old=old: float(row[v] - row[old]),
            "loss": lambda v, row=g, old=old: -float(row[old]),
        }
        expected += [(keys[rank](v), (*ids[:t], v)) for v in others]
    best = sorted(expected, key=lambda pair: -pair[0])[:5]
    assert backend.batches[:2] == [1, min(5, len(expected))]
    assert backend.prefixes[1 : 1 + len(best)] == [prefix for _, prefix in best]


def test_random_places_are_those_of_the_direction_in_any_order(toy: Callable[..., Any], linear: Any) -> None:
    made = toy(4)
    orders = set[tuple[Any, ...]]()
    for seed in range(48):
        options = {"width": 9, "rank": "random", "min_promise": -50.0, "plausibility_floor": None}
        engine, backend = made.watched(linear(TABLES[4]), strategy=NablaParallel(**options), embedding_terms=False)
        made.solve(engine, sampling=FOUR, budget=Budget(rollouts=1 + len(made.greedy())), seed=seed)
        orders.add(tuple(backend.prefixes[1:]))
    [changes] = {frozenset(order) for order in orders}
    assert len(changes) == 3
    assert len(orders) == 6  # every order of the three


def test_nothing_is_committed_before_the_end(toy: Callable[..., Any], linear: Any) -> None:
    """A later batch may change any token."""
    made = toy(1)
    result = made.solve(made.engine(linear(TABLES[1]), strategy=NablaParallel(min_promise=-5.0)), sampling=FOUR)
    assert [step.committed_text for step in result.trace] == [""] * (len(result.trace) - 1) + [result.text]


@pytest.mark.parametrize("allowed", [1, 2, 3, 5, 6])
def test_a_budget_cuts_the_last_batch(toy: Callable[..., Any], table: Callable[..., Any], allowed: int) -> None:
    made = toy(3)
    strategy = NablaParallel(min_promise=-20.0, width=4, plausibility_floor=None)
    engine, backend = made.watched(table(2), strategy=strategy)
    whole = made.solve(engine, sampling=FOUR, budget=UNLIMITED)
    everything = backend.ids.copy()
    assert len(everything) > 6
    backend.rollouts.clear()
    result = made.solve(engine, sampling=FOUR, budget=Budget(rollouts=allowed))
    assert backend.ids == everything[:allowed]
    assert (result.finish_reason, result.detail) == (FinishReason.BUDGET, f"rollouts {allowed}/{allowed}")
    assert whole.finish_reason is not FinishReason.BUDGET


def test_a_verified_change_ends_the_search(toy: Callable[..., Any]) -> None:
    """Verified by a tool are the completions that begin with the second most likely token."""
    made = toy(0)
    first = made.conditionals[()]
    second = int(first.argsort(descending=True)[1])

    def judge(rollout: Rollout) -> Score:
        right = rollout.completion_ids[0] == second
        return Score(float(right), verdict=float(right), verified=right)

    strategy = NablaParallel(min_promise=-20.0, plausibility_floor=None, direction=NoDirection())
    result = made.solve(made.engine(FixedReward(judge), strategy=strategy), sampling=FOUR)
    assert result.token_ids[0] == second
    assert result.finish_reason is FinishReason.VERIFIED


def test_what_could_not_be_judged_is_never_the_best_of_a_batch(toy: Callable[..., Any]) -> None:
    made = toy(0)
    greedy = made.greedy()
    reward = FixedReward(lambda r: 0.0 if r.completion_ids == greedy else Score.not_judged("no idea"))
    result = made.solve(made.engine(reward, strategy=NablaParallel(min_promise=-9.0)), sampling=FOUR)
    assert result.token_ids == greedy
    assert len(refinements(result)) > 1
    assert not accepted(result)
