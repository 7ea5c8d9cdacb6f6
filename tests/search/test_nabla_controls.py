"""What the gradient is worth against its controls, what the controls are, and the loop as it was published."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nabla_agents import AdamDTO, Budget, MirrorDTO, Nabla, NoDirection, RandomDirection, Refinable, Sampling
from nabla_agents.search.directions import DIRECTIONS as KNOWN

FOUR = Sampling(max_tokens=4)
TABLES = [2.0 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
TOKENS = ("1", "2", "3", "4", "<eos>")
DIRECTIONS: tuple[Any, ...] = ("gradient", "none", "random")


@pytest.mark.parametrize("rollouts", [3, None], ids=["3 rollouts", "no limit"])
def test_the_gradient_comes_nearest_to_the_highest_of_all_341_objectives(
    toy: Callable[..., Any], linear: Any, rollouts: int | None
) -> None:
    """Mean of J(result) - max J over 20 pairs of a model and a linear reward, one seed for all three directions.

    It measures the whole loop with its default settings: the gradient proposes better tokens, and leaves out those
    that promise nothing. On rewards whose gradient is not exact the difference may be anything.
    """
    short = {direction: [0.0] * 0 for direction in DIRECTIONS}
    greedy: list[float] = []
    for seed, table in enumerate(TABLES):
        made, reward = toy(seed % 10), linear(table)
        j = made.objective(reward.value)
        greedy.append(j[made.greedy()] - max(j.values()))
        for direction in DIRECTIONS:
            engine = made.engine(reward, strategy=Nabla(direction=KNOWN[direction]), budget=Budget(rollouts=rollouts))
            short[direction].append(j[made.solve(engine, sampling=FOUR, seed=seed).token_ids] - max(j.values()))
    mean = {direction: statistics.mean(gaps) for direction, gaps in short.items()}
    found = {direction: sum(gap > -1e-9 for gap in gaps) for direction, gaps in short.items()}
    assert mean["gradient"] >= max(mean.values())
    assert found["gradient"] >= max(found.values())
    assert min(mean.values()) > statistics.mean(greedy)  # the controls search, too


def test_the_more_the_reward_weighs_the_more_of_it_is_found_and_the_less_likely_the_text_is(
    toy: Callable[..., Any], linear: Any
) -> None:
    """Likelihood weights 1 and 0.001, the λ = 1000 of the published code; means over 20 toys."""
    rewards, likelihoods = [], []
    for weight in (1.0, 0.001):
        chosen = []
        for seed in range(20):
            made, reward = toy(seed % 10), linear(TABLES[seed])
            engine = made.engine(reward, strategy=Nabla(), likelihood_weight=weight, budget=Budget(rollouts=None))
            ids = made.solve(engine, sampling=FOUR).token_ids
            chosen.append((reward.value(ids), made.likelihoods[ids]))
        reward_mean, likelihood_mean = map(statistics.mean, zip(*chosen, strict=True))
        rewards.append(reward_mean)
        likelihoods.append(likelihood_mean)
    assert rewards[1] > rewards[0] + 0.5
    assert likelihoods[1] < likelihoods[0] - 0.5


def test_the_random_control_has_the_gradients_spread_and_none_of_its_direction(
    toy: Callable[..., Any], linear: Any
) -> None:
    """g(new) - g(old) of two independent Gaussians with the spread of g is one with √2 of it and mean 0.

    100 seeds propose the same token, as β is 0. Mean within 5.03 standard errors, sum of squares within its
    chi-square bounds: a sound control fails at odds of 1e-6. The gradient's own difference is far outside.
    """
    made, table = toy(3), TABLES[0]
    strategy = Nabla(direction=RandomDirection(), dto=MirrorDTO(beta=0.0), min_promise=-99.0, plausibility_floor=None)
    engine = made.engine(linear(table), strategy=strategy, budget=Budget(rollouts=2))
    g = made.gradient(made.greedy())[0] + table[0].double()
    scale = math.sqrt(2.0) * float(g.std(correction=0))
    steps = [result.trace[1] for result in made.solve_many(engine, range(100), sampling=FOUR)]
    assert len({(step.position, step.old_token, step.new_token) for step in steps}) == 1
    gains = torch.tensor([step.ranking_score for step in steps], dtype=torch.float64) / scale
    assert abs(float(gains.mean())) * math.sqrt(100) < 5.03
    halves = torch.tensor([100.0, float(gains.square().sum())], dtype=torch.float64) / 2
    assert 2.5e-7 < float(torch.special.gammainc(*halves)) < 1 - 2.5e-7


def test_the_random_control_takes_mean_and_spread_from_the_plausible_tokens_alone(
    toy: Callable[..., Any], linear: Any
) -> None:
    """With a floor that leaves the two likeliest tokens, a reward of 1e6 on the others does not widen the direction."""
    made = toy(3)
    log_p = made.conditionals[()]
    first, second, third = log_p.sort(descending=True).values[:3].tolist()
    floor = first - (second + third) / 2
    table = torch.zeros(4, 5)
    table[0, log_p < second] = 1e6
    strategy = Nabla(direction=RandomDirection(), dto=MirrorDTO(beta=0.0), min_promise=-99.0, plausibility_floor=floor)
    engine = made.engine(linear(table), strategy=strategy, budget=Budget(rollouts=2))
    for seed in range(10):
        step = made.solve(engine, sampling=FOUR, seed=seed).trace[1]
        assert step.position == 0
        assert step.ranking_score is not None
        assert abs(step.ranking_score) < 100.0


def test_without_direction_the_rewards_gradient_is_not_asked_for(
    toy: Callable[..., Any], linear: Any, table: Callable[..., Any]
) -> None:
    """The first proposal is the same under a reward with a gradient, one without, and none."""
    for seed in range(3):
        made, rolled = toy(seed), []
        for reward in (linear(TABLES[seed]), table(seed), None):
            strategy = Nabla(direction=NoDirection(), min_promise=-6.0)
            engine, backend = made.watched(reward, strategy=strategy, budget=Budget(rollouts=2))
            made.solve(engine, sampling=FOUR)
            rolled.append(backend.ids)
        assert rolled[0] == rolled[1] == rolled[2]


# ── as published ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_published_settings() -> None:
    paper = Nabla.paper()
    assert paper.dto == AdamDTO(steps=20, learning_rate=0.01, final_learning_rate=0.001)
    assert paper.refinable == Refinable(min_entropy=0.25, max_probability=0.97)
    assert paper.resample == Sampling(temperature=0.5, top_p=0.95)
    assert (paper.acceptance, paper.rule) == ("reward", "reward")
    assert (paper.plausibility_floor, paper.stop_when_verified) == (None, False)
    assert (Nabla().acceptance, Nabla().stop_when_verified) == ("objective", True)


def nucleus(logits: Any, temperature: float, top_p: float) -> list[float]:
    """Probabilities at a temperature of the fewest likeliest tokens that hold `top_p`."""
    p = (logits / temperature).softmax(-1).tolist()
    kept: set[int] = set()
    for token in sorted(range(len(p)), key=lambda v: -p[v]):
        if sum(p[v] for v in kept) < top_p:
            kept.add(token)
    total = sum(p[v] for v in kept)
    return [p[v] / total if v in kept else 0.0 for v in range(len(p))]


def test_a_token_is_drawn_at_each_uncertain_position_and_the_first_other_one_is_rolled_out(
    toy: Callable[..., Any], linear: Any, odds: Callable[..., float]
) -> None:
    """The first proposal of 120 seeds against its enumerated distribution: at each position with more than 0.25 nats
    and no token above 0.97, a draw from the refined row at temperature 0.5 and top-p 0.95; the same token as written
    is committed without a rollout. A sound loop fails at odds of 1e-6.
    """
    made, table = toy(15, 3.0), TABLES[7]
    dto = AdamDTO(learning_rate=0.05)
    strategy = Nabla.paper().replace(dto=dto, temperature=0.0)
    written = made.greedy()
    g = made.gradient(written) + table[: len(written)]
    expected: dict[Any, float] = {}
    unchanged, skipped = 1.0, 0
    for t, old in enumerate(written):
        log_p = made.conditionals[written[:t]]
        if -float((log_p.exp() * log_p).sum()) <= 0.25 or float(log_p.max().exp()) > 0.97:
            skipped += 1
            continue
        p = nucleus(dto.refine(log_p[None], g[t : t + 1])[0], 0.5, 0.95)
        expected |= {(t, TOKENS[v]): unchanged * p[v] for v in range(5) if v != old and p[v]}
        unchanged *= p[old]
    expected[None, None] = unchanged
    assert skipped == 2
    assert len(expected) > 3
    engine = made.engine(linear(table), strategy=strategy, budget=Budget(rollouts=2))
    results = made.solve_many(engine, range(120), sampling=FOUR)
    firsts = [result.trace[1] for result in results]  # the commit, where nothing was proposed
    assert odds([(step.position, step.new_token) for step in firsts], expected) > 1e-6
    assert all(result.usage.rollouts == 1 + (result.trace[1].kind == "refine") for result in results)


@pytest.mark.parametrize("resample", [Sampling(temperature=0.0), Sampling(top_k=1)], ids=["greedy", "top 1"])
def test_where_the_written_token_is_drawn_again_no_rollout_is_paid(
    toy: Callable[..., Any], linear: Any, resample: Sampling
) -> None:
    """Steps of 0.01 leave the likeliest token the likeliest; steps of 3 nats under a reward of 50 do not."""
    for seed in range(6):
        made = toy(seed)
        wish = torch.zeros(4, 5)
        wish[0, (made.greedy()[0] + 1) % 5] = 50.0
        for rate, more in ((1e-4, False), (3.0, True)):
            dto = AdamDTO(learning_rate=rate, final_learning_rate=rate)
            strategy = Nabla.paper().replace(dto=dto, resample=resample, temperature=0.0)
            result = made.solve(made.engine(linear(wish), strategy=strategy), sampling=FOUR)
            assert (result.usage.rollouts > 1) == more
            assert (result.usage.gradient_passes >= 1, result.detail) == (True, "nothing promising left")
            assert (result.token_ids[0] == (made.greedy()[0] + 1) % 5) == more
