"""Which rollout wins: the order of completions by hand-made tables, the vote by counting."""

import itertools
import math

import pytest
import torch

from nabla_agents import Rollout, Score
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored

NAN, INF = math.nan, math.inf


def entry(
    text: str = "",
    value: float | None = None,
    *,
    likelihood: float | None = -1.0,
    verdict: float | None = None,
    verified: bool | None = None,
) -> Scored:
    """A scored rollout with J = likelihood + value; without a reward where `value` is None."""
    bare = Rollout.from_text("?", text)
    log_probs = None if likelihood is None else torch.tensor([likelihood], dtype=torch.float64)
    rollout = Rollout(bare.prompt, (), text, log_probs)
    score = None if value is None else Score(value, verdict=verdict, verified=verified)
    return Scored(rollout, score, rollout.log_likelihood + (value or 0.0))


def pool(*entries: Scored, rule: AcceptanceRule = "objective") -> Pool:
    made = Pool(rule)
    for e in entries:
        made.add(e)
    return made


# From best to worst by the objective; each is beaten only by those before it, whatever else speaks for it.
LADDER = [
    entry("verified", 1.0, verdict=1.0, verified=True, likelihood=-50.0),
    entry("verified, less likely", 1.0, verdict=1.0, verified=True, likelihood=-60.0),
    entry("verified, lower verdict", 9.0, verdict=0.5, verified=True, likelihood=-1.0),
    entry("high verdict", 0.9, verdict=0.9, verified=False, likelihood=-90.0),
    entry("high verdict, less likely", 0.9, verdict=0.9, verified=False, likelihood=-95.0),
    entry("low verdict, learned score high", 80.0, verdict=0.2, verified=False, likelihood=-1.0),
    entry("no tool, high J", 3.0, likelihood=-1.0),
    entry("no tool, low J", 4.0, likelihood=-9.0),
    entry("no tool, hopeless", -INF, likelihood=-1.0),
    entry("not judged", NAN, likelihood=-0.1),
]


def test_verified_outranks_the_verdict_outranks_the_objective() -> None:
    made = Pool()
    for higher, lower in itertools.combinations(LADDER, 2):
        assert made.better(higher, lower), (higher.rollout.text, lower.rollout.text)
        assert not made.better(lower, higher), (lower.rollout.text, higher.rollout.text)


def test_the_best_of_the_pool_is_the_best_in_any_order() -> None:
    for order in itertools.permutations(LADDER[3:9], 4):
        assert pool(*order).best() is min(order, key=LADDER.index)


def test_by_reward_the_value_alone_decides() -> None:
    low = entry("low", 0.1, likelihood=-0.1, verdict=1.0, verified=True)
    high = entry("high", 0.2, likelihood=-99.0)
    assert pool(low, high, rule="reward").best() is high
    assert pool(low, high, rule="objective").best() is low
    assert not Pool("reward").better(entry("", 0.2, likelihood=-1.0), high)  # equal value: not strictly better


@pytest.mark.parametrize("rule", ["objective", "reward"])
@pytest.mark.parametrize(
    "unjudged", [entry("", NAN), entry("", NAN, verdict=1.0, verified=True, likelihood=0.0)], ids=["plain", "verified"]
)
def test_what_was_not_judged_is_below_everything_and_never_accepted(rule: AcceptanceRule, unjudged: Scored) -> None:
    made = Pool(rule)
    for other in (entry("", -1e300), entry("", -INF), entry("", 0.0)):
        assert made.better(other, unjudged)
        assert not made.better(unjudged, other)
        assert pool(unjudged, other, rule=rule).best() is other
        assert pool(other, unjudged, rule=rule).best() is other
    assert not made.better(unjudged, entry("", NAN))


@pytest.mark.parametrize("rule", ["objective", "reward"])
def test_with_nothing_judged_the_first_is_kept(rule: AcceptanceRule) -> None:
    first = entry("first", NAN)
    assert pool(first, entry("second", NAN, likelihood=0.0), rule=rule).best() is first


@pytest.mark.parametrize("rule", ["objective", "reward"])
def test_ties_keep_the_earlier_one(rule: AcceptanceRule) -> None:
    first, second = entry("first", 1.0), entry("second", 1.0)
    assert pool(first, second, rule=rule).best() is first
    assert pool(second, first, rule=rule).best() is second


@pytest.mark.parametrize("rule", ["objective", "reward"])
def test_without_a_reward_the_likelihood_decides_under_every_rule(rule: AcceptanceRule) -> None:
    likely, unlikely = entry("likely", likelihood=-1.0), entry("unlikely", likelihood=-2.0)
    assert pool(unlikely, likely, rule=rule).best() is likely
    assert pool(likely, unlikely, rule=rule).best() is likely


def test_the_reward_alone_needs_no_likelihood() -> None:
    """Completions of a server that gives no log-probabilities can still be compared by their reward."""
    low, high = entry("low", 0.1, likelihood=None), entry("high", 0.2, likelihood=None)
    assert math.isnan(high.objective)
    assert pool(low, high, rule="reward").best() is high


def test_what_is_within_the_noise_of_the_objective_is_a_tie() -> None:
    """Verdicts and rewards alone have none."""
    noisy, low = Pool(noise=0.5), entry("low", 1.0, likelihood=-1.0)
    assert not noisy.better(entry("within", 1.0, likelihood=-0.5), low)
    assert noisy.better(entry("above", 1.0, likelihood=-0.49), low)
    assert noisy.better(entry("verdict", 1.0, verdict=0.1, likelihood=-9.0), low)
    assert noisy.better(low, entry("not judged", NAN))
    assert Pool("reward", noise=0.5).better(entry("reward", 1.01, likelihood=-9.0), low)
    drafted = Pool(drafted=True, noise=0.5)
    assert not drafted.better(entry("within", 1.4, likelihood=-1.0), low)
    assert drafted.better(entry("above", 1.6, likelihood=-1.0), low)


def test_an_empty_pool_has_no_best() -> None:
    assert Pool().best() is None
    assert Pool().vote() is None
    assert Pool().vote("reward") is None
    assert (len(Pool()), list(Pool())) == (0, [])


def test_a_pool_keeps_everything_in_order() -> None:
    assert list(pool(*LADDER)) == LADDER
    assert len(pool(*LADDER)) == len(LADDER)


# ── votes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(value: float, reward: float | None = 0.0, *, likelihood: float = -1.0) -> Scored:
    return entry(f"Answer: {value:g}", reward, likelihood=likelihood)


def test_a_majority_counts_answers_not_texts_nor_rewards() -> None:
    """7 has three votes, written in three ways; 8 has two, and every reward."""
    sevens = [entry("so 7.0"), entry("Answer: 7"), entry("#### 7")]
    eights = [answer(8, 100.0), answer(8, 100.0)]
    winner = pool(*eights, *sevens).vote()
    assert winner in sevens


def test_of_the_winning_answer_the_best_completion_is_returned() -> None:
    best = answer(7, 5.0)
    assert pool(answer(8, 9.0), answer(7, 1.0), best, answer(7, 2.0)).vote() is best


def test_a_tied_vote_goes_to_the_answer_seen_first() -> None:
    first = answer(1, 0.0)
    assert pool(first, answer(2, 5.0)).vote() is first
    assert pool(answer(2, 0.0), first).vote() is not first


def test_the_unanswered_do_not_vote() -> None:
    seven = answer(7)
    silent = [entry("I do not know", 9.0), entry("", 9.0), entry("no idea", 9.0)]
    assert pool(*silent, seven).vote() is seven
    assert pool(*silent, seven).vote("reward") is seven


def test_with_no_answer_at_all_the_best_completion_is_returned() -> None:
    silent = [entry("a", 1.0), entry("b", 2.0)]
    assert pool(*silent).vote() is silent[1]
    assert pool(*silent).vote("reward") is silent[1]


@pytest.mark.parametrize(
    ("rewards", "winner"),
    [
        # answer 1 has rewards a, b; answer 2 has c. Softmax weights: e^a + e^b against e^c.
        ((0.0, 0.0, 0.5), 1),  # 2 against 1.65
        ((0.0, 0.0, 0.8), 2),  # 2 against 2.23
        ((-5.0, -5.0, -4.5), 1),  # the same, 5 lower: a shift of all rewards changes nothing
        ((-5.0, -5.0, -4.2), 2),
        ((-1000.0, -1000.0, -999.5), 1),  # far below the range of exp
        ((-1000.0, -1000.0, -999.2), 2),
        ((1000.0, 1000.0, 1000.5), 1),  # far above it
        ((1000.0, 1000.0, 1000.8), 2),
        ((-1000.0, -1000.0, 1000.0), 2),
        ((-2.0, 3.0, 3.1), 2),  # 0.14 + 20.1 against 22.2
        ((-2.0, 3.0, 3.0), 1),
    ],
)
def test_weighted_votes_count_softmax_of_the_reward(rewards: tuple[float, float, float], winner: int) -> None:
    a, b, c = rewards
    entries = [answer(1, a), answer(1, b), answer(2, c)]
    for order in itertools.permutations(entries):
        best = pool(*order).vote("reward")
        assert best is not None
        assert best.rollout.text == f"Answer: {winner}"


def test_the_unjudged_do_not_vote_by_reward() -> None:
    one = answer(1, -3.0)
    unjudged = [answer(2, NAN), answer(2, NAN), answer(2, NAN)]
    assert pool(*unjudged, one).vote("reward") is one
    majority = pool(*unjudged, one).vote("majority")
    assert majority is unjudged[0]
    assert pool(*unjudged).vote("reward") is unjudged[0]


def test_without_a_reward_a_weighted_vote_is_a_majority() -> None:
    entries = [entry("Answer: 1"), entry("Answer: 2", likelihood=-9.0), entry("Answer: 2", likelihood=-8.0)]
    assert pool(*entries).vote("reward") is entries[2]


def test_a_vote_leaves_the_pool_as_it_was() -> None:
    entries = [answer(1), answer(2), answer(2)]
    made = pool(*entries)
    made.vote()
    made.vote("reward")
    assert list(made) == entries
