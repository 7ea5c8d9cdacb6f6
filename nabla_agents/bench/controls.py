"""Rewards made worse on purpose: what a search gains by them shows how much it leans on their being right."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.gradients import GradientRows, WeightedRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.registry import reward_of, terms_of
from nabla_agents.rewards.base import Reward, RewardGradient, RewardSum, judged
from nabla_agents.types import Rollout, Score

T = TypeVar("T")


class Worse(Reward):
    """Base of what is said otherwise than by another reward, `inner`."""

    def __init__(self, inner: Reward) -> None:
        self.inner = inner

    @property
    def learned(self) -> bool:
        return self.inner.learned

    def bind(self, model: LanguageModel) -> Self:
        bound = copy.copy(self)
        bound.inner = self.inner.bind(model)
        return bound

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        return self.inner.gradient(rollouts, starts, likelihoods)


class Shuffled(Worse):
    """What another reward says of an answer to another question: value, verdict, places and gradient.

    donors: answers of the language model to questions of the same kind. Which one stands for a completion follows from
        the question and the completion, and is never an answer to the same question.

    The marginal distribution of all that the search is told stays; what it says of this answer is gone. Costs what the
    other reward costs, and a forward and backward pass of the language model on the donor for a learned gradient.
    """

    def __init__(self, inner: Reward, donors: Sequence[Rollout]) -> None:
        if len({donor.prompt.question for donor in donors}) < 2:
            raise ConfigurationError("Shuffled needs answers to at least two questions.")
        super().__init__(inner)
        self._donors = tuple(donors)
        self._model: LanguageModel | None = None

    @property
    def name(self) -> str:
        return f"shuffled {self.inner.name}"

    def bind(self, model: LanguageModel) -> Self:
        bound = super().bind(model)
        bound._model = model
        return bound

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return [None] * len(rollouts)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return judged(self.inner, [self._donor(rollout) for rollout in rollouts])

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        if self._model is None or not self.learned:
            return [None] * len(rollouts)
        donors = [self._donor(rollout) for rollout in rollouts]
        zeros = [0] * len(donors)
        states = self._model.likelihood_gradient(donors, zeros)
        gradients = self.inner.gradient(donors, zeros, [state.gradient for state in states])
        return [
            None if g is None else RewardGradient(_Cyclic(g.gradient, len(donor.completion_ids)), g.usage + state.usage)
            for g, donor, state in zip(gradients, donors, states, strict=True)
        ]

    def _donor(self, rollout: Rollout) -> Rollout:
        """The answer that stands for a completion."""
        return _elsewhere("donor", rollout, [(donor.prompt.question, donor) for donor in self._donors])


class OthersRemarks(Worse):
    """Another reward, whose remarks (`feedback`) are those that it made on answers to other questions.

    donors: answers of the language model; those that the reward has no remark on tell nothing, and one of the others
        stands for a completion as in `Shuffled`. Value, verdict and places stay, so all that is gone is what a model
        is told of this answer.
    """

    def __init__(self, inner: Reward, donors: Sequence[Rollout]) -> None:
        super().__init__(inner)
        scores = judged(inner, donors)
        self._remarks = [(d.prompt.question, s.feedback) for d, s in zip(donors, scores, strict=True) if s.feedback]
        if len({question for question, _ in self._remarks}) < 2:
            raise ConfigurationError(
                f"{inner.name} has remarks on fewer than two questions; there are none to shuffle."
            )

    @property
    def name(self) -> str:
        return f"{self.inner.name} with others' remarks"

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = zip(judged(self.inner, rollouts), rollouts, strict=True)
        return [replace(s, feedback=_elsewhere("remark", r, self._remarks)) if s.feedback else s for s, r in scores]


class Flipped(Worse):
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
        super().__init__(inner)
        self.rate, self.seed = rate, seed

    @property
    def name(self) -> str:
        return f"{self.inner.name} flipped {100 * self.rate:g} %"

    def score_prefixes(self, rollouts: Sequence[Rollout]) -> list[Score | None]:
        return [None] * len(rollouts)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = judged(self.inner, rollouts)
        return [_opposite(s) if self._lies(r) else s for s, r in zip(scores, rollouts, strict=True)]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        gradients = self.inner.gradient(rollouts, starts, likelihoods)
        return [
            RewardGradient(WeightedRows(((-1.0, g.gradient),)), g.usage) if g is not None and self._lies(r) else g
            for g, r in zip(gradients, rollouts, strict=True)
        ]

    def _lies(self, rollout: Rollout) -> bool:
        return _uniform(f"flip {self.seed}", rollout) < self.rate


class Unlocated(Worse):
    """Another reward without the places of its verdicts: it says whether, and where only in words (`feedback`)."""

    @property
    def name(self) -> str:
        return f"{self.inner.name} without places"

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [replace(score, spans=()) for score in judged(self.inner, rollouts)]


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


def _opposite(score: Score) -> Score:
    """Of a tool's verdict in [0, 1] what is missing to 1, of a learned score the negative."""
    value, verdict = (-score.value, None) if score.verdict is None else (1 - score.value, 1 - score.verdict)
    return replace(
        score,
        value=value,
        verdict=verdict,
        verified=None if score.verified is None else not score.verified,
        spans=tuple(replace(span, value=-span.value, expected=None) for span in score.spans),
        explanation=f"turned round: {score.explanation}",
        feedback="",  # it would tell the truth
    )


@dataclass(frozen=True, eq=False)
class _Cyclic:
    """A gradient read as if its rollout began anew after its end."""

    inner: GradientRows
    length: int

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        return self.inner.rows([p % self.length for p in positions])


def _elsewhere(purpose: str, rollout: Rollout, known: Sequence[tuple[str, T]]) -> T:
    """What is known of another question: the first such one behind a place that depends as `_uniform` does."""
    first = int(_uniform(purpose, rollout) * len(known))
    return next(what for question, what in (*known[first:], *known[:first]) if question != rollout.prompt.question)


def _uniform(purpose: str, rollout: Rollout) -> float:
    """A number in [0, 1) that depends on nothing but its purpose, the question and the completion."""
    digest = hashlib.sha256(f"{purpose}\0{rollout.prompt.question}\0{rollout.text}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


# ── the rewards of a comparison, by name ──────────────────────────────────────────────────────────────────────────


class ControlledReward(Settings):
    """A reward made worse on purpose; `of` is an expression.

    flip: the share of verdicts that are turned round (`Flipped`), drawn by `seed`.
    shuffle: it says what it said of answers to other questions (`Shuffled`); `"remarks"` is that for what a model is
        told alone (`OthersRemarks`).
    blur: Gaussian noise on the weights of a learned reward, in standard deviations of each tensor, drawn by `seed`: a
        reward that is wrong, and always in the same way, which a search can exploit.
    places: false takes the places from a tool's verdicts (`Unlocated`).
    """

    of: str
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    shuffle: bool | Literal["remarks"] = False
    blur: Annotated[float, Field(ge=0)] = 0.0
    places: bool = True
    seed: int = 0


RewardChoice = str | ControlledReward


def check(table: Mapping[str, RewardChoice]) -> None:
    """Raises ConfigurationError for an expression with an unknown name; nothing is loaded."""
    for name, choice in table.items():
        terms_of(_expression(choice), {other: _unmade for other in table if other != name})


def made(
    table: Mapping[str, RewardChoice],
    needed: set[str],
    *,
    loading: Mapping[str, Any],
    donors: Callable[[], Sequence[Rollout]],
) -> dict[str, Reward]:
    """The needed rewards of a table. Arms share them, and so do sums; a blurred one has weights of its own.

    `donors` are the answers that stand for others where a reward is shuffled.

    Raises:
        ConfigurationError: a reward that is made of itself, or of nothing.
    """
    shared: dict[str, Reward] = {}

    def make(name: str, inside: tuple[str, ...], ready: dict[str, Reward]) -> Reward:
        if name in inside:
            raise ConfigurationError(f"Reward {name!r} is made of itself: {' -> '.join((*inside, name))}.")
        if name in ready:
            return ready[name]
        choice, within = table[name], (*inside, name)
        parts = {} if isinstance(choice, ControlledReward) and choice.blur else ready
        others = {other: partial(make, other, within, parts) for other in table if other != name}
        reward = reward_of(terms_of(_expression(choice), others), loading)
        if reward is None:
            raise ConfigurationError(f"Reward {name!r} is none; leave it out, and name no reward for the strategy.")
        ready[name] = _controlled(reward, choice, donors) if isinstance(choice, ControlledReward) else reward
        return ready[name]

    return {name: make(name, (), shared) for name in table if name in needed}


def _controlled(reward: Reward, choice: ControlledReward, donors: Callable[[], Sequence[Rollout]]) -> Reward:
    if choice.blur:
        blur(reward, choice.blur, seed=choice.seed)
    if not choice.places:
        reward = Unlocated(reward)
    if choice.flip:
        reward = Flipped(reward, choice.flip, seed=choice.seed)
    if choice.shuffle == "remarks":
        return OthersRemarks(reward, donors())
    return Shuffled(reward, donors()) if choice.shuffle else reward


def _expression(choice: RewardChoice) -> str:
    return choice if isinstance(choice, str) else choice.of


def _unmade() -> Reward:
    raise ConfigurationError("a reward was made before anything was loaded")
