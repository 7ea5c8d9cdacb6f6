"""Rewards made worse on purpose: what a search gains by them shows how much it leans on their being right."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.carriers import Carrier, WeightedCarrier
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.base import Reward, RewardGradient, RewardSum, judged
from nabla_agents.types import Rollout, Score


class Shuffled(Reward):
    """What another reward says of an answer to another question: value, verdict, places and gradient.

    donors: answers of the language model to questions of the same kind. Which one stands for a completion follows from
        the question and the completion, and is never an answer to the same question.

    The marginal distribution of all that the search is told stays; what it says of this answer is gone. Costs what the
    other reward costs, and a forward and backward pass of the language model on the donor for a learned gradient.
    """

    def __init__(self, inner: Reward, donors: Sequence[Rollout]) -> None:
        if len({donor.prompt.question for donor in donors}) < 2:
            raise ConfigurationError("Shuffled needs answers to at least two questions.")
        self.inner, self._donors = inner, tuple(donors)
        self._model: LanguageModel | None = None

    @property
    def name(self) -> str:
        return f"shuffled {self.inner.name}"

    @property
    def learned(self) -> bool:
        return self.inner.learned

    def bind(self, model: LanguageModel) -> Reward:
        bound = copy.copy(self)
        bound.inner, bound._model = self.inner.bind(model), model
        return bound

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return judged(self.inner, [self.donor(rollout) for rollout in rollouts])

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return [None] * len(rollouts)

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        if self._model is None or not self.learned:
            return [None] * len(rollouts)
        donors = [self.donor(rollout) for rollout in rollouts]
        zeros = [0] * len(donors)
        states = self._model.likelihood_gradient(donors, zeros, [None] * len(donors))
        gradients = self.inner.gradient(donors, zeros, [state.carrier for state in states])
        return [
            None if g is None else RewardGradient(_Cyclic(g.carrier, len(donor.completion_ids)), g.usage + state.usage)
            for g, donor, state in zip(gradients, donors, states, strict=True)
        ]

    def donor(self, rollout: Rollout) -> Rollout:
        """The answer that stands for a completion."""
        question, count = rollout.prompt.question, len(self._donors)
        first = int(_uniform("donor", rollout) * count)
        return next(
            donor
            for donor in (self._donors[(first + i) % count] for i in range(count))
            if donor.prompt.question != question
        )


class Flipped(Reward):
    """Another reward, lying about a share of the completions: a tool's verdict and those on its places are turned
    round, and the sign of a learned score and of its gradient.

    rate: the share, in [0, 1]. Which completions follows from the question, the completion and the seed.

    Raises:
        ConfigurationError: a rate outside, or a sum: flip one of its terms.
    """

    def __init__(self, inner: Reward, rate: float, *, seed: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise ConfigurationError(f"Flipped rate is {rate!r}; expected a share from 0 to 1.")
        if isinstance(inner, RewardSum):
            raise ConfigurationError(f"Flipped got the sum {inner.name}; flip one of its terms, then add.")
        self.inner, self.rate, self.seed = inner, rate, seed

    @property
    def name(self) -> str:
        return f"{self.inner.name} flipped {100 * self.rate:g} %"

    @property
    def learned(self) -> bool:
        return self.inner.learned

    def bind(self, model: LanguageModel) -> Reward:
        return Flipped(self.inner.bind(model), self.rate, seed=self.seed)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = judged(self.inner, rollouts)
        return [flipped(s) if self._lies(r) else s for s, r in zip(scores, rollouts, strict=True)]

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return [None] * len(rollouts)

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        gradients = self.inner.gradient(rollouts, starts, likelihoods)
        return [
            RewardGradient(WeightedCarrier(((-1.0, g.carrier),)), g.usage) if g is not None and self._lies(r) else g
            for g, r in zip(gradients, rollouts, strict=True)
        ]

    def _lies(self, rollout: Rollout) -> bool:
        return _uniform(f"flip {self.seed}", rollout) < self.rate


class Unlocated(Reward):
    """Another reward without the places of its verdicts: it says whether, and not where."""

    def __init__(self, inner: Reward) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return f"{self.inner.name} without places"

    @property
    def learned(self) -> bool:
        return self.inner.learned

    def bind(self, model: LanguageModel) -> Reward:
        return Unlocated(self.inner.bind(model))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [replace(score, spans=()) for score in judged(self.inner, rollouts)]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[Carrier]
    ) -> list[RewardGradient | None]:
        return self.inner.gradient(rollouts, starts, likelihoods)


def blur(reward: Reward, spread: float, *, seed: int = 0) -> None:
    """Adds Gaussian noise to the weights of a learned reward, `spread` standard deviations of each tensor; in place.

    Raises:
        ConfigurationError: a reward without weights of its own.
    """
    transformer = getattr(reward, "transformer", None)
    if transformer is None:
        raise ConfigurationError(f"blur got {reward.name}, which has no weights; expected a single learned reward.")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in transformer.module.parameters():
            noise = torch.randn(weights.shape, generator=generator).to(weights)
            weights.add_(spread * weights.std(correction=0) * noise)


def flipped(score: Score) -> Score:
    """The opposite judgement: of a tool's verdict in [0, 1] what is missing to 1, of a learned score the negative."""
    value, verdict = (-score.value, None) if score.verdict is None else (1 - score.value, 1 - score.verdict)
    return replace(
        score,
        value=value,
        verdict=verdict,
        verified=None if score.verified is None else not score.verified,
        spans=tuple(replace(span, value=-span.value, expected=None) for span in score.spans),
        explanation=f"turned round: {score.explanation}",
    )


@dataclass(frozen=True, eq=False)
class _Cyclic:
    """A carrier read as if its rollout began anew after its end."""

    inner: Carrier
    length: int

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        return self.inner.rows([p % self.length for p in positions])


def _uniform(purpose: str, rollout: Rollout) -> float:
    """A number in [0, 1) that depends on nothing but its purpose, the question and the completion."""
    digest = hashlib.sha256(f"{purpose}\0{rollout.prompt.question}\0{rollout.text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
