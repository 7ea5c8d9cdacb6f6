"""The algebra of rewards, and the contract that every reward is held to."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch

from nabla_agents import (
    ArithmeticSteps,
    ConfigurationError,
    DifferentiableReward,
    LanguageModel,
    Reward,
    RewardError,
    Rollout,
    Score,
    Span,
    Usage,
)
from nabla_agents.models.carriers import CreditCarrier
from nabla_agents.rewards.base import RewardGradient, judged
from nabla_agents.testing import FixedReward, random_model

ROLLOUTS = [Rollout.from_text("?", text) for text in ("a", "bb", "ccc")]


def length(rollout: Rollout) -> float:
    return float(len(rollout.text))


def fixed(score: Score) -> Reward:
    return FixedReward(lambda _: score)


class Linear(DifferentiableReward):
    """A reward whose gradient rows are known: `slope` for token 0 at position 0, zero elsewhere."""

    def __init__(self, slope: float, bound_to: LanguageModel | None = None) -> None:
        self.slope, self.bound_to = slope, bound_to

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [Score(self.slope) for _ in rollouts]

    def gradient(self, rollouts, starts, likelihoods):  # type: ignore[no-untyped-def]
        carrier = CreditCarrier({0: {0: self.slope}}, 2, torch.device("cpu"))
        return [RewardGradient(carrier, Usage(reward_backward_tokens=1))] * len(rollouts)

    def bind(self, model: LanguageModel) -> Reward:
        return Linear(self.slope, model)


class Broken(Reward):
    """Returns whatever it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return self.answer  # type: ignore[return-value]


class Refusing(Reward):
    """Raises on the texts it is told to refuse; counts its calls."""

    def __init__(self, *refused: str, error: BaseException | None = None) -> None:
        self.refused, self.error, self.calls = refused, error or ValueError("out of order"), 0

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.calls += 1
        if any(r.text in self.refused for r in rollouts):
            raise self.error
        return [Score(length(r)) for r in rollouts]


# ── sums ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.untyped  # to type checkers an int is a float, at run time it is not
@pytest.mark.parametrize(
    ("made", "factor"),
    [
        (lambda r: r + r, 2),
        (lambda r: 2.0 * r, 2),
        (lambda r: r * 2, 2),
        (lambda r: 2 * (r + 0.5 * r), 3),
        (lambda r: r + r + r, 3),
        (lambda r: r + (r + r), 3),
        (lambda r: -1.0 * r + 0.25 * r * 2, -0.5),
        (lambda r: 0.0 * r, 0),
    ],
)
def test_rewards_add_and_scale(made: Callable[[Reward], Reward], factor: float) -> None:
    assert [s.value for s in made(FixedReward(length)).score(ROLLOUTS)] == [factor, 2 * factor, 3 * factor]


def test_a_sum_is_named_by_its_parts() -> None:
    assert (FixedReward(length) + 2.0 * ArithmeticSteps()).name == "FixedReward + 2 * ArithmeticSteps"
    assert (0.5 * (FixedReward(length) + ArithmeticSteps())).name == "0.5 * FixedReward + 0.5 * ArithmeticSteps"


def test_the_verdict_of_a_sum_is_the_tools_share() -> None:
    """Learned 0.3, tool one of two equations right at weight 2: value 0.3 + 2 · 0.5, of which the tool's is 1."""
    [score] = (fixed(Score(0.3)) + 2.0 * ArithmeticSteps()).score([Rollout.from_text("?", "1+1=2\n1+2=4")])
    assert score.value == pytest.approx(1.3)
    assert score.verdict == 1.0
    assert score.verified is False
    [unjudged] = (fixed(Score(0.3)) + fixed(Score(0.4))).score(ROLLOUTS[:1])
    assert unjudged.verdict is None


@pytest.mark.parametrize(("a", "b"), list(itertools.product([True, False, None], repeat=2)))
def test_a_sum_is_verified_if_someone_vouches_and_no_one_objects(a: bool | None, b: bool | None) -> None:
    [score] = (fixed(Score(1.0, verified=a)) + fixed(Score(1.0, verified=b))).score(ROLLOUTS[:1])
    table = {(True, True): True, (True, None): True, (None, True): True, (None, None): None}
    assert score.verified is table.get((a, b), False)


def test_spans_of_a_sum_carry_their_weight_as_credit() -> None:
    here, there = Span(0, 1, -1.0, "7", credit=10.0), Span(1, 2, 1.0, credit=3.0)
    [score] = (2.0 * fixed(Score(0.0, spans=(here,))) + 0.5 * fixed(Score(0.0, spans=(there,)))).score(ROLLOUTS[:1])
    assert [(s.start, s.value, s.expected, s.credit) for s in score.spans] == [
        (0, -1.0, "7", 20.0),
        (1, 1.0, None, 1.5),
    ]
    assert here.credit == 10.0


@pytest.mark.parametrize("order", [0, 1])
def test_a_part_that_could_not_judge_makes_the_sum_unjudged(order: int) -> None:
    parts = [fixed(Score(5.0, verified=True, explanation="fine")), fixed(Score.not_judged("no idea"))]
    [score] = (parts[order] + 2.0 * parts[1 - order]).score(ROLLOUTS[:1])
    assert math.isnan(score.value)
    assert not score.judged
    assert "no idea" in score.explanation
    assert "fine" in score.explanation


def test_a_sum_spends_what_its_parts_spend() -> None:
    one, two = Usage(reward_calls=1, flops=3.0), Usage(reward_calls=2, reward_forward_tokens=5)
    [score] = (fixed(Score(0.0, usage=one)) + 7.0 * fixed(Score(0.0, usage=two))).score(ROLLOUTS[:1])
    assert score.usage == one + two


def test_the_gradient_of_a_sum_is_the_weighted_sum_of_gradients() -> None:
    [gradient] = (Linear(1.0) + 2.0 * Linear(10.0) + FixedReward(length)).gradient(ROLLOUTS[:1], [0], [])
    assert gradient is not None
    assert gradient.carrier.rows([0, 1]).tolist() == [[21.0, 0.0], [0.0, 0.0]]
    assert gradient.usage == Usage(reward_backward_tokens=2)


@pytest.mark.parametrize(
    "reward", [FixedReward(length), FixedReward(length) + ArithmeticSteps(), 0.0 * Linear(1.0)], ids=["one", "sum", "0"]
)
def test_a_reward_without_gradient_says_so(reward: Reward) -> None:
    assert reward.gradient(ROLLOUTS, [0, 0, 0], []) == [None] * 3


def test_a_sum_binds_its_parts_and_stays_as_it_was() -> None:
    model = random_model(vocabulary=["a"], width=8, layers=1)
    part = Linear(1.0)
    bound = (part + 2.0 * part).bind(model)
    assert [(w, r.bound_to) for w, r in bound.terms] == [(1.0, model), (2.0, model)]  # type: ignore[attr-defined]
    assert part.bound_to is None


@pytest.mark.untyped
@pytest.mark.parametrize("other", [3, "tests", None, ArithmeticSteps])
def test_only_rewards_add(other: object) -> None:
    with pytest.raises(ConfigurationError, match="Rewards add and scale"):
        ArithmeticSteps() + other  # type: ignore[operator]


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_only_finite_weights_scale(weight: float) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        weight * ArithmeticSteps()


# ── the contract ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reward_that_raises_is_an_explained_nan_and_the_others_are_judged() -> None:
    scores = judged(Refusing("bb"), ROLLOUTS)
    assert [s.value for s in scores if s.judged] == [1.0, 3.0]
    assert not scores[1].judged
    assert scores[1].explanation == "Refusing raised ValueError: out of order"


def test_a_reward_that_raises_within_a_sum_leaves_the_other_rollouts_judged() -> None:
    scores = judged(FixedReward(length) + 2.0 * Refusing("bb"), ROLLOUTS)
    assert [s.value for s in scores[::2]] == [3.0, 9.0]
    assert not scores[1].judged
    assert "out of order" in scores[1].explanation


def test_a_reward_that_always_raises_judges_nothing() -> None:
    scores = judged(Refusing("a", "bb", "ccc"), ROLLOUTS)
    assert [s.judged for s in scores] == [False] * 3
    assert [s.usage.reward_calls for s in scores] == [1, 1, 1]


def test_an_interrupt_inside_a_reward_is_no_verdict() -> None:
    with pytest.raises(KeyboardInterrupt):
        judged(Refusing("a", error=KeyboardInterrupt()), ROLLOUTS)


@pytest.mark.untyped
@pytest.mark.parametrize("sum_with", [None, FixedReward(length)], ids=["alone", "in a sum"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([], "0 scores for 3"),
        ([Score(1.0)], "1 scores for 3"),
        ([Score(1.0)] * 4, "4 scores for 3"),
        ([1.0, 2.0, 3.0], "list of Score"),
        (None, "list of Score"),
        (Score(1.0), "list of Score"),
    ],
    ids=["none", "too few", "too many", "numbers", "nothing", "one score"],
)
def test_a_reward_that_breaks_its_contract_is_an_error_and_no_nan(
    answer: object, said: str, sum_with: Reward | None
) -> None:
    reward = Broken(answer)
    with pytest.raises(RewardError, match=f"Broken returned.*{said}"):
        judged(reward if sum_with is None else sum_with + reward, ROLLOUTS)


def test_every_judgement_is_a_call_whether_the_reward_counts_or_not() -> None:
    """A budget of reward calls must bind a user's own reward too."""
    own, counting = FixedReward(lambda r: Score(1.0)), ArithmeticSteps()
    assert [s.usage.reward_calls for s in judged(own, ROLLOUTS)] == [1, 1, 1]
    assert [s.usage.reward_calls for s in judged(counting, ROLLOUTS)] == [1, 1, 1]
    assert [s.usage.reward_calls for s in judged(own + 2.0 * counting, ROLLOUTS)] == [2, 2, 2]
