"""Backends and rewards that break their contract are errors; a reward that only cannot judge is a result."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nabla_agents import (
    BestOfN,
    Engine,
    FinishReason,
    Greedy,
    LanguageModel,
    Nabla,
    Reward,
    RewardError,
    Rollout,
    RolloutError,
    Sampling,
    Score,
    SelfConsistency,
)
from nabla_agents.testing import FixedReward, random_model

SHORT = Sampling(max_tokens=4)

pytestmark = pytest.mark.untyped


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model(vocabulary=("1", "2", "3", "4", "+", "=", "\n"), width=16, layers=1)


class Distorted:
    """A backend that returns something else than the model's rollouts."""

    def __init__(self, model: LanguageModel, distort: Callable[[list[Rollout]], Any]) -> None:
        self.model, self.distort = model, distort

    def rollout(self, jobs: Sequence[Any]) -> Any:
        return self.distort(self.model.rollout(jobs))


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), Nabla()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("distort", "said"),
    [
        (lambda made: [], r"Distorted returned 0 rollouts for \d+ jobs; expected one each"),
        (lambda made: made[:-1], r"returned \d+ rollouts for \d+ jobs"),
        (lambda made: made * 2, r"returned \d+ rollouts for \d+ jobs"),
        (lambda made: None, "returned None; expected a list of Rollout"),
        (lambda made: [r.text for r in made], "expected a list of Rollout"),
    ],
    ids=["none", "too few", "too many", "nothing", "texts"],
)
def test_a_backend_that_breaks_its_contract_is_an_error(
    model: LanguageModel, strategy: Any, distort: Any, said: str
) -> None:
    """In a batch too, where another number would give one prompt the rollouts of another."""
    engine = Engine(model=model, strategy=strategy, rollouts=Distorted(model, distort))
    with pytest.raises(RolloutError, match=said):
        engine.generate("12", sampling=SHORT)
    with pytest.raises(RolloutError, match=said):
        engine.generate_batch(["12", "3"], sampling=SHORT)


class Answering(Reward):
    def __init__(self, answer: Callable[[Sequence[Rollout]], Any]) -> None:
        self.answer = answer

    def score(self, rollouts: Sequence[Rollout]) -> Any:
        return self.answer(rollouts)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda rollouts: None, "Answering returned None; expected a list of Score"),
        (lambda rollouts: [], r"Answering returned 0 scores for \d+ rollouts"),
        (lambda rollouts: [Score(1.0)] * (len(rollouts) + 1), r"returned \d+ scores for \d+ rollouts"),
        (lambda rollouts: [1.0] * len(rollouts), "expected a list of Score"),
        (lambda rollouts: [Score(None)] * len(rollouts), "value is a number"),
        (lambda rollouts: [Score("high")] * len(rollouts), "value is a number"),
    ],
    ids=["nothing", "none", "too many", "numbers", "value None", "value text"],
)
def test_a_reward_that_breaks_its_contract_is_an_error(model: LanguageModel, answer: Any, said: str) -> None:
    engine = Engine(model=model, reward=Answering(answer), strategy=BestOfN(n=2))
    with pytest.raises(RewardError, match=said):
        engine.generate("12", sampling=SHORT)
    with pytest.raises(RewardError, match=said):
        engine.generate_batch(["12", "3"], sampling=SHORT)


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), SelfConsistency(n=3), Nabla(), Nabla.paper()])
def test_a_reward_that_never_judges_gives_the_first_completion_and_says_why(
    model: LanguageModel, strategy: Any
) -> None:
    engine = Engine(model=model, reward=FixedReward(lambda r: Score.not_judged("no idea")), strategy=strategy)
    run = engine.steps("12", sampling=SHORT)
    first = next(run.rounds())
    result = run.drain()
    assert result.text == first.text
    assert result.score is not None
    assert not result.score.judged
    assert result.score.explanation == "no idea"
    assert result.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    assert not any(s.accepted for s in result.trace[1:-1] if s.kind == "refine")


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_score_still_gives_a_completion(model: LanguageModel, value: float) -> None:
    result = Engine(model=model, reward=FixedReward(lambda r: value), strategy=Nabla()).generate("12", sampling=SHORT)
    assert result.score is not None
    assert not result.score.judged
    assert f"gave {value}; expected a finite number" in result.score.explanation
    assert result.text
    assert len(result.token_ids) > 0
