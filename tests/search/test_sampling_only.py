"""The baselines against every completion that there is: distribution, choice and votes by enumeration."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from nabla_agents import BestOfN, Budget, FinishReason, Greedy, Nabla, NoDirection, Sampling, Score, SelfConsistency
from nabla_agents.testing import FixedReward

FOUR = Sampling(max_tokens=4)
UNLIMITED = Budget(rollouts=None)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_writes_the_likeliest_token_at_every_place(toy: Callable[..., Any], seed: int) -> None:
    made = toy(seed)
    result = made.solve(made.engine(strategy=Greedy()), sampling=FOUR, seed=5)
    assert result.token_ids == made.greedy()
    assert result.text == made.text(made.greedy())
    assert result.log_likelihood == pytest.approx(made.likelihoods[made.greedy()], abs=1e-5)
    assert (result.usage.rollouts, result.usage.gradient_passes) == (1, 0)
    ended = made.greedy()[-1] == 4
    assert (result.finish_reason, result.truncated) == (FinishReason.STOP if ended else FinishReason.LENGTH, not ended)


def test_greedy_takes_the_temperature_of_a_request_that_has_one(
    toy: Callable[..., Any], odds: Callable[..., float]
) -> None:
    """250 seeds against the enumerated distribution; a sound sampler fails at odds of 1e-6."""
    made = toy(3)
    engine = made.engine(strategy=Greedy())
    seen = made.solve_many(engine, range(250), sampling=FOUR.replace(temperature=1.3))
    assert odds([result.token_ids for result in seen], made.distribution(1.3)) > 1e-6


@pytest.mark.parametrize(
    "strategy",
    [
        Greedy(),
        BestOfN(n=5),
        SelfConsistency(n=5),
        Nabla(min_promise=-9.0),
        Nabla.paper(),
        Nabla(direction=NoDirection()),
    ],
    ids=["greedy", "best of n", "self consistency", "nabla", "nabla, paper", "nabla, none"],
)
def test_temperature_0_is_greedy_everywhere(toy: Callable[..., Any], table: Callable[..., Any], strategy: Any) -> None:
    """Temperature 0 meant 1 in the research code's resampling; here every token that was not given is the likeliest."""
    for seed in range(4):
        made = toy(seed)
        engine, backend = made.watched(table(seed), strategy=strategy)
        made.solve(engine, sampling=FOUR.replace(temperature=0.0), seed=seed)
        assert backend.ids == [made.greedy(prefix) for prefix in backend.prefixes]


# ── what is sampled ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "own", "requested", "temperature"),
    [(BestOfN, 0.7, None, 0.7), (SelfConsistency, 1.0, None, 1.0), (BestOfN, 0.7, 1.5, 1.5)],
)
def test_rollouts_have_the_models_distribution(
    toy: Callable[..., Any],
    odds: Callable[..., float],
    kind: Any,
    own: float,
    requested: float | None,
    temperature: float,
) -> None:
    """700 rollouts of one batch against the enumerated distribution; a sound sampler fails at odds of 1e-6."""
    made = toy(2)
    engine, backend = made.watched(strategy=kind(n=700, temperature=own), budget=UNLIMITED)
    made.solve(engine, sampling=FOUR.replace(temperature=requested))
    assert backend.batches == [700]
    assert odds(backend.ids, made.distribution(temperature)) > 1e-6
    other = 1.0 if temperature == 0.7 else 0.7
    assert odds(backend.ids, made.distribution(other)) < 1e-6  # the sample is large enough to tell


def test_likelihoods_are_those_at_temperature_1_whatever_the_sampling_was(toy: Callable[..., Any]) -> None:
    made = toy(1)
    engine, backend = made.watched(strategy=BestOfN(n=64), budget=UNLIMITED)
    made.solve(engine, sampling=FOUR.replace(temperature=2.0, top_k=3))
    for rollout in backend.rollouts:
        assert rollout.log_likelihood == pytest.approx(made.likelihoods[rollout.completion_ids], abs=1e-5)


# ── what is chosen ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", ["reward", "objective"])
def test_the_best_of_n_is_the_highest_of_what_was_rolled(
    toy: Callable[..., Any], table: Callable[..., Any], value: Callable[..., float], rule: Any
) -> None:
    made = toy(0)
    engine, backend = made.watched(table(), strategy=BestOfN(n=12, temperature=1.0, rule=rule), budget=UNLIMITED)
    weight, differ = (0.0 if rule == "reward" else 1.0), 0
    for seed in range(25):
        backend.rollouts.clear()
        result = made.solve(engine, sampling=FOUR, seed=seed)
        worth = {ids: value(ids) + weight * made.likelihoods[ids] for ids in backend.ids}
        assert result.token_ids == max(worth, key=worth.__getitem__)
        assert result.score is not None
        assert result.score.value == pytest.approx(value(result.token_ids))
        differ += result.token_ids != max(worth, key=lambda ids: value(ids) + (1 - weight) * made.likelihoods[ids])
    assert differ > 3  # the two rules do choose differently


def test_without_a_reward_the_best_of_n_is_the_likeliest(toy: Callable[..., Any]) -> None:
    made = toy(4)
    engine, backend = made.watched(strategy=BestOfN(n=6, temperature=1.5))
    for seed in range(10):
        backend.rollouts.clear()
        result = made.solve(engine, sampling=FOUR, seed=seed)
        assert result.token_ids == max(backend.ids, key=made.likelihoods.__getitem__)
        assert result.score is None


def test_of_equal_rewards_the_first_is_kept(toy: Callable[..., Any]) -> None:
    made = toy(2)
    reward = FixedReward(lambda r: float(len(r.text) >= 2))
    engine, backend = made.watched(reward, strategy=BestOfN(n=8, temperature=1.0))
    for seed in range(10):
        backend.rollouts.clear()
        result = made.solve(engine, sampling=FOUR, seed=seed)
        good = [i for i, r in enumerate(backend.rollouts) if len(r.text) >= 2] or [0]
        assert result.token_ids == backend.ids[good[0]]
        accepted = [i for i, step in enumerate(result.trace[:-1]) if step.accepted]
        assert accepted == [good[0]]


def test_what_could_not_be_judged_is_never_best_and_does_not_vote_by_reward(toy: Callable[..., Any]) -> None:
    """Three of four rollouts cannot be judged; the fourth wins even with the lowest value."""
    made = toy(3)

    def judge(rollout: Any) -> float | Score:
        return -1e9 if rollout.text.startswith("2") else Score.not_judged("the tool is away")

    for strategy in (BestOfN(n=24, temperature=1.0), SelfConsistency(n=24, temperature=1.0, weighting="reward")):
        result = made.solve(made.engine(FixedReward(judge), strategy=strategy, budget=UNLIMITED), sampling=FOUR)
        assert result.text.startswith("2")


def by_hand(made: Any, rolled: list[Any], reward: Callable[[Any], float], *, weighted: bool) -> Any:
    """The winner of a vote: the answer is the whole text, an empty text has none, of its voters the one with most J."""
    votes: dict[str, float] = defaultdict(float)
    for ids in rolled:
        if made.text(ids):
            votes[made.text(ids)] += math.exp(reward(ids)) if weighted else 1.0
    answer = max(votes, key=lambda a: (votes[a], -[made.text(ids) for ids in rolled].index(a)))
    voters = [ids for ids in rolled if made.text(ids) == answer]
    return max(voters, key=lambda ids: reward(ids) + made.likelihoods[ids])


@pytest.mark.parametrize("weighting", ["majority", "reward"])
def test_a_vote_equals_one_counted_by_hand(
    toy: Callable[..., Any], table: Callable[..., Any], value: Callable[..., float], weighting: Any
) -> None:
    made = toy(5)
    strategy = SelfConsistency(n=9, temperature=1.2, weighting=weighting)
    engine, backend = made.watched(table(), strategy=strategy, budget=UNLIMITED)
    differ = 0
    for seed in range(40):
        backend.rollouts.clear()
        result = made.solve(engine, sampling=FOUR, seed=seed)
        winner = by_hand(made, backend.ids, value, weighted=weighting == "reward")
        assert result.token_ids == winner
        differ += winner != by_hand(made, backend.ids, value, weighted=weighting != "reward")
    assert differ > 3  # the two votes do elect differently


def test_without_a_reward_a_weighted_vote_is_a_majority(toy: Callable[..., Any]) -> None:
    made = toy(5)
    for seed in range(10):
        majority, weighted = (
            made.solve(made.engine(strategy=SelfConsistency(weighting=w)), sampling=FOUR, seed=seed)
            for w in ("majority", "reward")
        )
        assert majority.token_ids == weighted.token_ids


@pytest.mark.parametrize("weighting", ["majority", "reward"])
def test_the_elected_rollout_is_the_accepted_one(
    toy: Callable[..., Any], table: Callable[..., Any], weighting: Any
) -> None:
    made = toy(5)
    engine = made.engine(table(), strategy=SelfConsistency(n=9, temperature=1.2, weighting=weighting))
    for seed in range(20):
        result = made.solve(engine, sampling=FOUR, seed=seed, budget=UNLIMITED)
        assert [step.text for step in result.trace if step.accepted] == [result.text, result.text]  # rollout, commit


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [1, 3, 7])
def test_drawn_a_few_at_a_time_no_more_are_drawn_once_a_tool_vouches(toy: Callable[..., Any], width: int) -> None:
    made = toy(2)
    good = lambda r: len(r.text) == 3 and not r.cut  # noqa: E731
    reward = FixedReward(lambda r: Score(float(good(r)), verified=good(r)))
    whole, drawn = made.watched(reward, strategy=BestOfN(n=7, temperature=1.0))
    engine, backend = made.watched(reward, strategy=BestOfN(n=7, temperature=1.0, width=width))
    stopped = 0
    for seed in range(12):
        drawn.rollouts.clear()
        backend.rollouts.clear()
        made.solve(whole, sampling=FOUR, seed=seed)
        result = made.solve(engine, sampling=FOUR, seed=seed)
        first = next((i for i, r in enumerate(drawn.rollouts) if good(r)), 7)
        needed = min(7, -(-(first + 1) // width) * width)
        assert backend.ids == drawn.ids[:needed]
        ended = FinishReason.VERIFIED if first < 7 > width else result.finish_reason
        assert (result.usage.rollouts, result.finish_reason) == (needed, ended)
        stopped += needed < 7
    assert width == 7 or stopped > 1


@pytest.mark.parametrize("kind", [BestOfN, SelfConsistency])
@pytest.mark.parametrize("allowed", [1, 3, 8, 9, None], ids=str)
def test_a_budget_below_n_gives_fewer_rollouts_and_says_so(
    toy: Callable[..., Any], table: Callable[..., Any], kind: Any, allowed: int | None
) -> None:
    made = toy(3)
    engine, backend = made.watched(table(), strategy=kind(n=8), budget=Budget(rollouts=allowed))
    result = made.solve(engine, sampling=FOUR)
    rolled = 8 if allowed is None else min(8, allowed)
    assert backend.batches == [rolled]  # one batch
    assert (result.usage.rollouts, result.usage.reward_calls) == (rolled, rolled)
    assert [step.kind for step in result.trace] == ["rollout"] * rolled + ["commit"]
    if rolled < 8:
        assert (result.finish_reason, result.detail) == (FinishReason.BUDGET, f"rollouts {allowed}/{allowed}")
    else:
        assert result.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)


def test_the_first_rollouts_are_the_same_whatever_the_budget_is(toy: Callable[..., Any]) -> None:
    made = toy(2)
    engine, backend = made.watched(strategy=BestOfN(n=8, temperature=1.0))
    made.solve(engine, sampling=FOUR, seed=4)
    made.solve(engine, sampling=FOUR, seed=4, budget=Budget(rollouts=3))
    assert backend.ids[8:] == backend.ids[:3]
