"""What a reward is, and the algebra: rewards add and scale, `prm + 2.0 * ArithmeticSteps().otherwise(0.5)`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import SupportsFloat, TypeVar

import torch

from nabla_agents.errors import ConfigurationError, RewardError
from nabla_agents.models.gradients import GradientRows, WeightedRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.background import Background
from nabla_agents.rewards.remark import remark
from nabla_agents.types import Rollout, Score, Usage

PartT = TypeVar("PartT")


@dataclass(frozen=True, eq=False)
class RewardGradient:
    """A reward's gradient for one rollout and what it cost."""

    gradient: GradientRows
    usage: Usage = Usage()


class Reward(ABC):
    """Judges completions. A wrong answer is a low value; what could not be judged is NaN with an explanation."""

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per rollout, in order."""

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        """One score per unfinished completion, in order; None where what is unfinished cannot be judged.

        A learned reward reads them like any other text; a tool says nothing, unless it is one that knows how to.
        """
        return [*judged(self, rollouts)] if self.learned else [None] * len(rollouts)

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        """∂r/∂ one-hot rows from position `start` on; None where this reward has no gradient.

        `likelihoods` are the gradients of the language model's own log-likelihood for the same rollouts, for rewards
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

    @property
    def learned(self) -> bool:
        """Whether it runs a model: a sum scores models on the caller's thread, and tools beside them on others."""
        return False

    @property
    def calls_per_completion(self) -> int:
        """How many reward calls the judgement of one completion is, as the ledger counts them."""
        return 1

    def otherwise(self, value: float) -> Reward:
        """This reward with `value` where it could not judge; no tool has then judged, and no one vouches."""
        return Otherwise(self, value)

    def silent(self) -> Reward:
        """This reward without remarks, for what the model that answers must not be told, such as hidden tests: its
        verdicts count as before, and `Score.feedback` is empty.
        """
        return Silent(self)

    def within(self, seconds: float) -> Reward:
        """This reward with a limit for one call of `score`, whatever the number of rollouts: beyond it, all of them
        are explained NaN, and the call is left behind on its thread. Rewards of this package have limits of their own.
        """
        return Within(self, seconds)

    def __add__(self, other: Reward) -> Reward:
        return RewardSum((*_terms(self), *_terms(other)))

    def __radd__(self, other: Reward | int) -> Reward:
        """`sum(rewards)` begins with 0."""
        if isinstance(other, int) and other == 0:
            return self
        raise ConfigurationError(f"Rewards add and scale by finite numbers; got {other!r} + {self.name}.")

    def __mul__(self, weight: float) -> Reward:
        if not isinstance(weight, Real) or isinstance(weight, bool):
            raise ConfigurationError(f"Rewards add and scale by finite numbers; got {weight!r} * {self.name}.")
        return RewardSum(tuple((float(weight) * w, r) for w, r in _terms(self)))

    __rmul__ = __mul__


class DifferentiableReward(Reward):
    """A reward with a gradient with respect to the completion's tokens."""

    @property
    def learned(self) -> bool:
        return True

    @abstractmethod
    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]: ...


@dataclass(frozen=True, eq=False)
class RewardSum(Reward):
    """Σ weight · reward; the parts are judged side by side, so the time is that of the slowest.

    value: one part that could not judge makes the sum unjudged, because sums with and without a part do not compare;
        `part.otherwise(0.0)` says what its silence counts.
    verified: True if someone vouches and no one objects. With a negative weight, who vouches objects, and who objects
        says nothing.
    A part of weight 0 is not there: it is not asked, costs nothing, and can neither vouch nor spoil the sum.
    """

    terms: tuple[tuple[float, Reward], ...]

    def __post_init__(self) -> None:
        for weight, reward in self.terms:
            if not isinstance(reward, Reward) or not math.isfinite(weight):
                raise ConfigurationError(f"Rewards add and scale by finite numbers; got {weight!r} * {reward!r}.")

    @property
    def name(self) -> str:
        return " + ".join(r.name if w == 1 else f"{w:g} * {r.name}" for w, r in self.terms)

    @property
    def learned(self) -> bool:
        return any(r.learned for _, r in self._parts)

    @property
    def calls_per_completion(self) -> int:
        return sum(r.calls_per_completion for _, r in self._parts)

    @property
    def _parts(self) -> list[tuple[float, Reward]]:
        return [(w, r) for w, r in self.terms if w != 0]

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        calls = [(r.learned, partial(judged, r, rollouts)) for _, r in self._parts]
        tools = {i: Background(call) for i, (learned, call) in enumerate(calls) if not learned and len(calls) > 1}
        scored = {i: call() for i, (_, call) in enumerate(calls) if i not in tools}  # meanwhile, on this thread
        columns = [tools[i].result() if i in tools else scored[i] for i in range(len(calls))]
        return [_finite(self, _summed(scores)) for scores in self._by_rollout(columns, len(rollouts))]

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        """Sums of the parts that can judge what is unfinished."""
        columns = [r.score_prefixes(rollouts) for _, r in self._parts]
        return [_summed(scores) if scores else None for scores in self._by_rollout(columns, len(rollouts))]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        columns = [r.gradient(rollouts, starts, likelihoods) for _, r in self._parts]
        return [_joined(gradients) if gradients else None for gradients in self._by_rollout(columns, len(rollouts))]

    def bind(self, model: LanguageModel) -> Reward:
        return RewardSum(tuple((w, r.bind(model)) for w, r in self.terms))

    def _by_rollout(self, columns: Sequence[Sequence[PartT | None]], count: int) -> list[list[tuple[float, PartT]]]:
        """What the parts gave for each rollout, with their weights and without those that gave nothing."""
        weighted = list(zip([w for w, _ in self._parts], columns, strict=True))
        return [[(w, part) for w, column in weighted if (part := column[i]) is not None] for i in range(count)]


@dataclass(frozen=True, eq=False)
class _Wrapped(Reward):
    """A reward around another: its own `score`, the other's gradient and binding."""

    inner: Reward

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def learned(self) -> bool:
        return self.inner.learned

    @property
    def calls_per_completion(self) -> int:
        return self.inner.calls_per_completion

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return self.inner.score_prefixes(rollouts)

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        return self.inner.gradient(rollouts, starts, likelihoods)

    def bind(self, model: LanguageModel) -> Reward:
        return replace(self, inner=self.inner.bind(model))


@dataclass(frozen=True, eq=False)
class Otherwise(_Wrapped):
    """See `Reward.otherwise`."""

    value: float

    def __post_init__(self) -> None:
        if not isinstance(self.value, Real) or not math.isfinite(self.value):
            raise ConfigurationError(f"{self.name}.otherwise got {self.value!r}; expected a finite value.")

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [
            s if s.judged else replace(s, value=self.value, verdict=None, verified=None)
            for s in judged(self.inner, rollouts)
        ]


@dataclass(frozen=True, eq=False)
class Silent(_Wrapped):
    """See `Reward.silent`."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [replace(s, feedback="") for s in judged(self.inner, rollouts)]


@dataclass(frozen=True, eq=False)
class Within(_Wrapped):
    """See `Reward.within`."""

    seconds: float

    def __post_init__(self) -> None:
        if not isinstance(self.seconds, Real) or not 0 < self.seconds < math.inf:
            raise ConfigurationError(f"{self.name}.within got {self.seconds!r}; expected seconds above 0.")

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        try:
            return Background(partial(judged, self.inner, rollouts)).result(self.seconds)
        except TimeoutError:
            late = f"{self.name} took longer than {self.seconds:g} s"
            return [Score.not_judged(late, Usage(reward_calls=1))] * len(rollouts)


def judged(reward: Reward, rollouts: Sequence[Rollout]) -> list[Score]:
    """The reward's scores with its contract enforced: one per rollout, each counted as at least one call.

    A rollout on which the reward raises is an explained NaN, and so is no other: they are judged again one by one. An
    infinite value or verdict is an explained NaN, too. Whatever a reward has to say to a model is plain and short.

    Raises:
        RewardError: something else than one `Score` per rollout came back.
        torch.OutOfMemoryError: several rollouts did not fit into memory together.
    """
    try:
        scores = reward.score(rollouts)
    except RewardError:
        raise
    except Exception as e:  # a broken tool must not end the process
        if isinstance(e, torch.OutOfMemoryError) and len(rollouts) > 1:
            raise  # a smaller batch may fit
        if len(rollouts) > 1:
            return [score for rollout in rollouts for score in judged(reward, [rollout])]
        explanation = f"{reward.name} raised {type(e).__name__}: {e}"
        return [Score.not_judged(explanation, Usage(reward_calls=1))] * len(rollouts)
    _check_scores(reward, scores, len(rollouts))
    counted = [s if s.usage.reward_calls else replace(s, usage=s.usage + Usage(reward_calls=1)) for s in scores]
    readable_scores = [replace(s, feedback=remark(s.feedback)) if s.feedback else s for s in counted]
    return [_finite(reward, s) for s in readable_scores]


def _finite(reward: Reward, score: Score) -> Score:
    """The score if it can be compared and added, or says why it cannot; else not judged, with what it was."""
    odd = [x for x in (score.value, score.verdict) if x is not None and not math.isfinite(x)]
    if not odd or (not score.judged and score.explanation):
        return score
    explanation = f"{reward.name} gave {odd[0]}; expected a finite number"
    return replace(Score.not_judged(explanation, score.usage), coverage=score.coverage)


def _check_scores(reward: Reward, scores: object, count: int) -> None:
    if not isinstance(scores, Sequence) or not all(isinstance(s, Score) for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected a list of Score.")
    if not all(isinstance(s.value, SupportsFloat) for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected scores whose value is a number.")
    if not all(isinstance(s.feedback, str) for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected feedback that is text.")
    if any(s.verdict is not None and s.judged and not s.verdict == s.verdict for s in scores):
        raise RewardError(f"{reward.name} returned {scores!r}; expected verdicts that are numbers, or None.")
    if len(scores) != count:
        raise RewardError(f"{reward.name} returned {len(scores)} scores for {count} rollouts; expected one each.")


def _terms(reward: Reward) -> tuple[tuple[float, Reward], ...]:
    return reward.terms if isinstance(reward, RewardSum) else ((1.0, reward),)


def _summed(weighted: Sequence[tuple[float, Score]]) -> Score:
    scores = [s for _, s in weighted]
    verdicts = [w * s.verdict for w, s in weighted if s.verdict is not None]
    verified = [v for v in (_vouched(w, s) for w, s in weighted) if v is not None]
    value = sum((w * s.value for w, s in weighted), 0.0)
    explanations = [s.explanation for s in scores if s.explanation]
    if math.isnan(value) and all(s.judged for s in scores):
        explanations.append("infinite values cancel")
    return Score(
        value=value,
        verdict=sum(verdicts) if verdicts else None,
        verified=all(verified) if verified else None,
        spans=tuple(replace(span, credit=w * span.credit) for w, s in weighted for span in s.spans),
        explanation="; ".join(explanations),
        usage=sum((s.usage for s in scores), Usage()),
        coverage=tuple(c for s in scores for c in s.coverage),
        feedback="\n".join(s.feedback for w, s in weighted if w > 0 and s.feedback),
    )


def _joined(weighted: Sequence[tuple[float, RewardGradient]]) -> RewardGradient:
    gradient = WeightedRows(tuple((w, g.gradient) for w, g in weighted))
    return RewardGradient(gradient, sum((g.usage for _, g in weighted), Usage()))


def _vouched(weight: float, score: Score) -> bool | None:
    if weight > 0 or score.verified is None:
        return score.verified
    return False if score.verified else None
