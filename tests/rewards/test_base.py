"""The algebra of rewards, and the contract that every reward is held to."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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
from nabla_agents.models.gradients import CreditRows
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
        gradient = CreditRows({0: {0: self.slope}}, 2, torch.device("cpu"))
        return [RewardGradient(gradient, Usage(reward_backward_tokens=1))] * len(rollouts)

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
    assert gradient.gradient.rows([0, 1]).tolist() == [[21.0, 0.0], [0.0, 0.0]]
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


TOOL: Any = ArithmeticSteps()
REFUSED: list[tuple[str, Callable[[Any], object], list[Any]]] = [
    ("Rewards add and scale", lambda other: TOOL + other, [3, "tests", None, ArithmeticSteps]),
    ("Rewards add and scale", lambda other: other + TOOL, [1, "0", None, 0.5]),  # but for the zero of `sum`
    ("Rewards add and scale", lambda weight: TOOL * weight, ["2", None, [2.0], True, 1j]),
    ("finite", lambda weight: weight * TOOL, [math.nan, math.inf, -math.inf]),
    ("otherwise", TOOL.otherwise, [math.nan, math.inf, "0.5", None]),
    ("within", TOOL.within, [0.0, -1.0, math.nan, math.inf, "5", None]),
]


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("message", "made", "wrong"), [(message, made, wrong) for message, made, values in REFUSED for wrong in values]
)
def test_rewards_add_scale_and_are_limited_by_rewards_and_finite_numbers(
    message: str, made: Callable[[Any], object], wrong: Any
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(wrong)


# ── the contract ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("reward", "values"),
    [
        (Refusing("bb"), [1.0, None, 3.0]),
        (FixedReward(length) + 2.0 * Refusing("bb"), [3.0, None, 9.0]),
        (Refusing("a", "bb", "ccc"), [None, None, None]),
    ],
    ids=["one", "in a sum", "all"],
)
def test_a_reward_that_raises_is_an_explained_nan_and_the_others_are_judged(
    reward: Reward, values: list[float | None]
) -> None:
    scores = judged(reward, ROLLOUTS)
    assert [s.value if s.judged else None for s in scores] == values
    assert all("Refusing raised ValueError: out of order" in s.explanation for s in scores if not s.judged)
    assert [s.usage.reward_calls for s in scores] == [reward.calls_per_completion] * 3


def test_an_interrupt_inside_a_reward_is_no_verdict() -> None:
    with pytest.raises(KeyboardInterrupt):
        judged(Refusing("a", error=KeyboardInterrupt()), ROLLOUTS)


def test_a_verdict_that_is_no_number_is_an_error() -> None:
    """It would compare with nothing, and so rank by chance."""
    with pytest.raises(RewardError, match="expected verdicts that are numbers"):
        judged(Broken([Score(1.0, verdict=math.nan)] * len(ROLLOUTS)), ROLLOUTS)


@pytest.mark.parametrize("given", [Score(math.inf), Score(-math.inf), Score(1.0, verdict=-math.inf), Score(math.nan)])
def test_what_is_not_finite_is_not_judged_and_says_so(given: Score) -> None:
    """An infinite value would swallow all other terms of a sum, and equal every other infinite one."""
    for reward in (Broken([given] * 3), 2.0 * Broken([given] * 3), FixedReward(length) + Broken([given] * 3)):
        for score in judged(reward, ROLLOUTS):
            assert (score.judged, score.verdict, score.verified) == (False, None, None)
            assert "Broken gave" in score.explanation
            assert "expected a finite number" in score.explanation
    assert [s.value for s in judged(Broken([given] * 3).otherwise(-5.0), ROLLOUTS)] == [-5.0] * 3


def test_a_sum_beyond_the_range_of_floats_is_not_judged() -> None:
    [score] = (1e10 * fixed(Score(1e300)) + FixedReward(length)).score(ROLLOUTS[:1])
    assert not score.judged
    assert "gave inf" in score.explanation


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


# ── the algebra's edges ───────────────────────────────────────────────────────────────────────────────────────────────


class Slow(Reward):
    """Waits until it is released."""

    def __init__(self, released: threading.Event, value: float = 1.0) -> None:
        self.released, self.value = released, value

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        assert self.released.wait(20), "nothing released it"
        return [Score(self.value, self.value, True)] * len(rollouts)


def test_rewards_sum_up() -> None:
    parts: list[Reward] = [FixedReward(length), 2.0 * FixedReward(length), FixedReward(lambda r: 10.0)]
    assert [s.value for s in sum(parts).score(ROLLOUTS)] == [13, 16, 19]  # type: ignore[union-attr]
    assert sum(parts[:1]) is parts[0]


def test_a_part_of_weight_zero_is_not_there() -> None:
    """It is not asked, so it cannot hang, raise, vouch, or make the sum unjudged."""
    refusing = Refusing("a", "bb", "ccc")
    reward = FixedReward(length) + 0.0 * refusing + 0.0 * fixed(Score(1.0, 1.0, True)) + 0.0 * Broken(None)
    scores = judged(reward, ROLLOUTS)
    assert [(s.value, s.verdict, s.verified) for s in scores] == [(v, None, None) for v in (1.0, 2.0, 3.0)]
    assert refusing.calls == 0
    assert [s.usage.reward_calls for s in scores] == [1, 1, 1]
    assert [s.value for s in judged(0.0 * refusing, ROLLOUTS)] == [0.0] * 3


@pytest.mark.parametrize(("verified", "expected"), [(True, False), (False, None), (None, None)])
def test_with_a_negative_weight_who_vouches_objects(verified: bool | None, expected: bool | None) -> None:
    [score] = (-2.0 * fixed(Score(0.5, 0.5, verified))).score(ROLLOUTS[:1])
    assert (score.value, score.verdict, score.verified) == (-1.0, -1.0, expected)


def test_what_a_part_could_not_judge_counts_as_said() -> None:
    """The silent tool counts 0.5, and has no verdict; the one that judged is untouched."""
    tool = ArithmeticSteps().otherwise(0.5)
    scores = (FixedReward(length) + 2.0 * tool).score(
        [Rollout.from_text("?", text) for text in ("no sums", "1+1=2", "1+1=3")]
    )
    assert [(s.value, s.verdict, s.verified) for s in scores] == [
        (8.0, None, None),
        (7.0, 2.0, True),
        (5.0, 0.0, False),
    ]
    assert "no equation" in scores[0].explanation
    assert [s.usage.reward_calls for s in scores] == [2, 2, 2]


def test_a_dead_tool_hits_its_limit_and_the_other_parts_are_judged() -> None:
    released = threading.Event()
    reward = FixedReward(length) + Slow(released).within(0.2).otherwise(0.0)
    started = time.perf_counter()
    scores = judged(reward, ROLLOUTS)
    assert time.perf_counter() - started < 10
    released.set()
    assert [s.value for s in scores] == [1.0, 2.0, 3.0]
    assert all("Slow took longer than 0.2 s" in s.explanation for s in scores)


def test_a_tool_in_time_is_not_touched_by_its_limit() -> None:
    released = threading.Event()
    released.set()
    assert [s.verified for s in Slow(released).within(30.0).score(ROLLOUTS)] == [True] * 3
    broken = judged(Refusing("bb").within(30.0), ROLLOUTS)
    assert [s.judged for s in broken] == [True, False, True]


def test_tools_of_a_sum_run_while_its_models_do() -> None:
    """The model releases the tools, and each tool the next: one after the other, they would wait for ever."""
    one, two = threading.Event(), threading.Event()

    class Model(Linear):
        def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
            one.set()
            two.set()
            seen.append(threading.current_thread())
            return super().score(rollouts)

    seen: list[threading.Thread] = []
    reward = Slow(one) + Slow(two, 4.0) + Model(0.25)
    assert [s.value for s in reward.score(ROLLOUTS)] == [5.25] * 3
    assert seen == [threading.current_thread()]  # a model's own thread is the caller's


def test_wrapped_rewards_keep_gradient_and_binding() -> None:
    model = random_model(vocabulary=["a"], width=8, layers=1)
    wrapped = (Linear(3.0).otherwise(0.0)).within(30.0)
    [gradient] = wrapped.gradient(ROLLOUTS[:1], [0], [])
    assert gradient is not None
    assert gradient.gradient.rows([0]).tolist() == [[3.0, 0.0]]
    assert wrapped.bind(model).inner.inner.bound_to is model  # type: ignore[attr-defined]
    assert (wrapped.name, wrapped.learned) == ("Linear", True)


# ── unfinished text ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_sum_judges_unfinished_text_by_the_parts_that_can() -> None:
    class Learned(FixedReward):
        @property
        def learned(self) -> bool:
            return True

    unfinished = [Rollout.from_text("q", "half"), Rollout.from_text("q", "whole")]
    learned, tool = Learned(lambda r: float(len(r.text))), FixedReward(lambda r: 100.0)
    assert tool.score_prefixes(unfinished) == [None, None]
    assert tool.otherwise(0.0).score_prefixes(unfinished) == [None, None]
    for reward in (2.0 * learned + tool, 2.0 * learned.within(5.0) + 0.0 * learned):
        assert [s and s.value for s in reward.score_prefixes(unfinished)] == [8.0, 10.0]
    assert (tool + 3.0 * tool).score_prefixes(unfinished) == [None, None]


def test_a_sum_tells_what_its_parts_tell_but_for_those_that_are_silent_or_subtracted() -> None:
    first, second = fixed(Score(0.0, feedback="add a source")), fixed(Score(0.0, feedback="be brief"))
    nothing = fixed(Score(1.0))
    assert (first + nothing + second).score(ROLLOUTS[:1])[0].feedback == "add a source\nbe brief"
    assert (first.silent() + second).score(ROLLOUTS[:1])[0].feedback == "be brief"
    assert (first + -1.0 * second).score(ROLLOUTS[:1])[0].feedback == "add a source"


def test_a_silent_reward_judges_as_before() -> None:
    score = Score(0.5, 0.5, False, (Span(0, 1, -1.0),), "hidden", Usage(reward_calls=1))
    silent = fixed(replace(score, feedback="f(1) returned 2, expected 3")).silent()
    assert silent.score(ROLLOUTS[:1]) == [score]


@pytest.mark.parametrize("feedback", ["x" * 1_000_000, "\x00\x1b[2J\u202e\ud800\r" * 100_000, "a\nb" * 1000])
def test_whatever_a_reward_tells_a_model_is_short_plain_text(feedback: str) -> None:
    for reward in (fixed(Score(0.0, feedback=feedback)), 2.0 * fixed(Score(0.0, feedback=feedback))):
        [score] = judged(reward, ROLLOUTS[:1])
        assert len(score.feedback) <= 500
        assert score.feedback.replace("\n", "").isprintable()
        assert score.feedback[:1] == feedback.lstrip("\x00\x1b")[:1]


@pytest.mark.untyped
def test_feedback_that_is_no_text_is_an_error() -> None:
    with pytest.raises(RewardError, match="expected feedback that is text"):
        judged(fixed(Score(0.0, feedback=None)), ROLLOUTS[:1])  # type: ignore[arg-type]
