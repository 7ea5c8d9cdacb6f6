"""What a reward is, and the algebra: rewards add and scale, `prm + 2.0 * ArithmeticSteps()`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import SupportsFloat

from nabla_agents.errors import ConfigurationError, RewardError
from nabla_agents.models.carriers import Carrier, WeightedCarrier
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.types import Rollout, Score, Usage


@dataclass(frozen=True, eq=False)
class RewardGradient:
    """A reward's carrier for one rollout and what it cost."""

    carrier: Carrier
    usage: Usage = Usage()


class Reward(ABC):
    """Judges completions. A wrong answer is a low value; what could not be judged is NaN with an explanation."""

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order."""

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        """∂r/∂ one-hot rows from position `start` on; None where this reward has no gradient.

        `likelihoods` are the carriers of the language model's own log-likelihood for the same rollouts, for rewards
        that contain it.
        """
        return [None] * len(rollouts)

    def bind(self, model: LanguageModel) -> Reward:
        """This reward prepared for a language model; called once, when an engine is built.

        Raises:
            VocabularyMismatchError: it compares token by token and the vocabularies differ.
        """
        return self

    @property
    def name(self) -> str:
        return type(self).__name__

    def __add__(self, other: Reward) -> Reward:
        return RewardSum((*_terms(self), *_terms(other)))

    def __mul__(self, weight: float) -> Reward:
        return RewardSum(tuple((weight * w, r) for w, r in _terms(self)))

    __rmul__ = __mul__


class DifferentiableReward(Reward):
    """A reward with a gradient with respect to the completion's tokens."""

    @abstractmethod
    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]: ...


@dataclass(frozen=True, eq=False)
class RewardSum(Reward):
    """Σ weight · reward. One part that could not judge makes the sum unjudged; one `False` makes it unverified."""

    terms: tuple[tuple[float, Reward], ...]

    def __post_init__(self) -> None:
        for weight, reward in self.terms:
            if not isinstance(reward, Reward) or not math.isfinite(weight):
                raise ConfigurationError(f"Rewards add and scale by finite numbers; got {weight!r} * {reward!r}.")

    @property
    def name(self) -> str:
        return " + ".join(r.name if w == 1 else f"{w:g} * {r.name}" for w, r in self.terms)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        columns = [judged(reward, rollouts) for _, reward in self.terms]
        return [self._sum(scores) for scores in zip(*columns, strict=True)]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        columns = [reward.gradient(rollouts, starts, likelihoods) for _, reward in self.terms]
        return [self._weighted(parts) for parts in zip(*columns, strict=True)]

    def bind(self, model: LanguageModel) -> Reward:
        return RewardSum(tuple((w, r.bind(model)) for w, r in self.terms))

    def _sum(self, scores: Sequence[Score]) -> Score:
        weights = [w for w, _ in self.terms]
        verdicts = [w * s.verdict for w, s in zip(weights, scores, strict=True) if s.verdict is not None]
        verified = [s.verified for s in scores if s.verified is not None]
        spans = (
            replace(span, credit=w * span.credit) for w, s in zip(weights, scores, strict=True) for span in s.spans
        )
        return Score(
            value=sum(w * s.value for w, s in zip(weights, scores, strict=True)),
            verdict=sum(verdicts) if verdicts else None,
            verified=all(verified) if verified else None,
            spans=tuple(spans),
            explanation="; ".join(s.explanation for s in scores if s.explanation),
            usage=sum((s.usage for s in scores), Usage()),
            coverage=tuple(c for s in scores for c in s.coverage),
        )

    def _weighted(self, parts: Sequence[RewardGradient | None]) -> RewardGradient | None:
        known = [(w, p) for (w, _), p in zip(self.terms, parts, strict=True) if p is not None and w != 0]
        if not known:
            return None
        carrier = WeightedCarrier(tuple((w, p.carrier) for w, p in known))
        return RewardGradient(carrier, sum((p.usage for _, p in known), Usage()))


def judged(reward: Reward, rollouts: Sequence[Rollout]) -> list[Score]:
    """The reward's scores with its contract enforced: one per rollout, each counted as at least one call.

    A rollout on which the reward raises is an explained NaN, and so is no other: they are judged again one by one.

    Raises:
        RewardError: something else than one `Score` per rollout came back.
    """
    try:
        scores = reward.score(rollouts)
    except RewardError:
        raise
    except Exception as e:  # a broken tool must not end the process
        if len(rollouts) > 1:
            return [score for rollout in rollouts for score in judged(reward, [rollout])]
        explanation = f"{reward.name} raised {type(e).__name__}: {e}"
        return [Score.not_judged(explanation, Usage(reward_calls=1))] * len(rollouts)
    _check_scores(reward, scores, len(rollouts))
    return [s if s.usage.reward_calls else replace(s, usage=s.usage + Usage(reward_calls=1)) for s in scores]


def _check_scores(reward: Reward, scores: object, count: int) -> None:
    if not isinstance(scores, Sequence) or not all(isinstance(s, Score) for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected a list of Score.")
    if not all(isinstance(s.value, SupportsFloat) for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected scores whose value is a number.")
    if len(scores) != count:
        raise RewardError(f"{reward.name} returned {len(scores)} scores for {count} rollouts; expected one each.")


def _terms(reward: Reward) -> tuple[tuple[float, Reward], ...]:
    return reward.terms if isinstance(reward, RewardSum) else ((1.0, reward),)
