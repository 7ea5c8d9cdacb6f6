"""Implicit process rewards: the log-ratio of a tuned causal language model and its reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, Unpack

from torch import Tensor
from transformers import AutoModelForCausalLM

from nabla_agents import tiny
from nabla_agents.errors import ConfigurationError, ContextOverflowError
from nabla_agents.models.contrast import Contrast, as_reward_usage, check_same_tokens, likelihoods
from nabla_agents.models.gradients import GradientRows, LikelihoodRows, embedding_terms
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.loading import Loading, LoadingOptions, load
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.pooling import POOLINGS, Pooling, pooled, pooled_rows
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.types import FinishReason, Rollout, Score, Usage


class ImplicitReward(SelfTested, DifferentiableReward):
    """r(y) = β · Σ_t [log π_φ(y_t | …) - log π_ref(y_t | …)], in nats times β, unbounded.

    Dense and differentiable without step labels (Yuan et al. 2024, arXiv 2412.01981). The reference is the engine's
    language model unless one is given; then the rollouts' own log-likelihoods serve and cost nothing. Cost: one
    forward of φ per score, one forward+backward per gradient (and as much of a separate reference).

    `pooling` joins the tokens' terms: their sum, their mean, or the sum of the positive ones (see `pooled`).

    Raises:
        ContextOverflowError: from `score`, for a text longer than the context of φ or the reference.
    """

    def __init__(
        self,
        model: LanguageModel,
        reference: LanguageModel | None = None,
        *,
        beta: float = 1.0,
        pooling: Pooling = "sum",
    ) -> None:
        _check(beta, pooling)
        if reference is not None:
            _check_vocabulary(model, reference)
        self.model, self.reference, self.beta = model, reference, beta
        self.pooling: Pooling = pooling
        self.label, self.tokenizer, self.transformer = model.name, model.tokenizer, model.transformer
        self._policy: LanguageModel | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        reference: str | Path | None = None,
        *,
        beta: float = 1.0,
        pooling: Pooling = "sum",
        **loading: Unpack[LoadingOptions],
    ) -> Self:
        """Loads φ (and a reference); `tiny` is the embedded process reward. Options as in `Loading`."""
        options = Loading(**loading)
        _check(beta, pooling)

        def lm(which: str | Path) -> LanguageModel:
            module, tokenizer = load(which, AutoModelForCausalLM, options, tiny_path=tiny.REWARD_PATH)
            return LanguageModel(module, tokenizer, name=f"reward {which}")

        return cls(lm(name), None if reference is None else lm(reference), beta=beta, pooling=pooling)

    def bind(self, model: LanguageModel) -> Reward:
        _check_vocabulary(self.model, model)
        bound = copy.copy(self)
        bound._policy = model
        bound.reference = self.reference or model
        return bound

    def reading(self, rollout: Rollout) -> Reading:
        """The ids that both models read."""
        rollout = self._in_ids(rollout)
        return Reading((*rollout.prompt.ids, *rollout.completion_ids), len(rollout.prompt.ids))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        rollouts = [self._in_ids(r) for r in rollouts]
        for rollout in rollouts:
            if (length := _length(rollout)) > self._context_length:
                raise ContextOverflowError(
                    f"{self.name} would read {length} tokens, but the context of {self.label} and its reference is "
                    f"{self._context_length}. Lower max_tokens, or choose models with a longer context."
                )
        tuned = self.model.token_log_probs(rollouts)
        reference = self._reference_log_probs(rollouts)
        return [
            Score(
                pooled(self.beta * (log_probs - other), self.pooling),
                usage=as_reward_usage(usage + more) + Usage(reward_calls=1),
            )
            for (log_probs, usage), (other, more) in zip(tuned, reference, strict=True)
        ]

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        limit = self._context_length
        fitting = [i for i, r in enumerate(rollouts) if _length(r) <= limit]  # what cannot be scored does not steer
        if not fitting:
            return [None] * len(rollouts)
        computed = self._gradient(
            [rollouts[i] for i in fitting], [starts[i] for i in fitting], [likelihoods[i] for i in fitting]
        )
        gradients = dict(zip(fitting, computed, strict=True))
        return [gradients.get(i) for i in range(len(rollouts))]

    def _gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], own: Sequence[GradientRows]
    ) -> list[RewardGradient]:
        terms = embedding_terms(own) and self.pooling != "positive"
        tuned = likelihoods(self.model, rollouts, starts, embedding_terms=terms)
        reference: list[tuple[GradientRows, Usage]] = [(g if terms else _direct(g), Usage()) for g in own]
        if self.reference is not None and self.reference is not self._policy:
            reference = [*likelihoods(self.reference, rollouts, starts, embedding_terms=terms)]
        return [
            RewardGradient(pooled_rows(Contrast(a, b, self.beta), len(r.completion_ids), self.pooling), usage + more)
            for r, (a, usage), (b, more) in zip(rollouts, tuned, reference, strict=True)
        ]

    @property
    def _context_length(self) -> int:
        """Tokens that both models can read."""
        return min(m.context_length for m in (self.model, self.reference) if m is not None)

    def _in_ids(self, rollout: Rollout) -> Rollout:
        """A completion that is known as text only, in φ's ids; special tokens that it spells stay text."""
        if rollout.completion_ids or not rollout.text:
            return rollout
        eos = self.tokenizer.eos_id
        ended = (eos,) if eos is not None and rollout.finish_reason is FinishReason.STOP else ()
        prompt = rollout.prompt if rollout.prompt.ids else self.model.prompt(rollout.prompt.messages)
        ids = self.tokenizer.encode(self.tokenizer.delimiters.within(rollout.text))
        return replace(rollout, prompt=prompt, completion_ids=(*ids, *ended))

    def _reference_log_probs(self, rollouts: Sequence[Rollout]) -> list[tuple[Tensor, Usage]]:
        if self.reference is None:
            raise ConfigurationError(
                f"{self.name} has no reference model: pass one, or use it through an Engine, whose language model "
                "then serves as reference."
            )
        known = [r.log_probs for r in rollouts if r.log_probs is not None]
        if self.reference is self._policy and len(known) == len(rollouts):
            return [(log_probs.double(), Usage()) for log_probs in known]
        return self.reference.token_log_probs(rollouts)


def _check(beta: float, pooling: Pooling) -> None:
    if not beta > 0:
        raise ConfigurationError(f"ImplicitReward beta is {beta!r}; expected a positive number.")
    if pooling not in POOLINGS:
        raise ConfigurationError(f"ImplicitReward pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}.")


def _check_vocabulary(tuned: LanguageModel, other: LanguageModel) -> None:
    instead = "Use a reward model tuned from the language model's family, or an OutcomeReward, which reads text."
    check_same_tokens(tuned, other, user="ImplicitReward", instead=instead)


def _direct(gradient: GradientRows) -> GradientRows:
    """Without the term through embeddings."""
    return replace(gradient, embedding_gradient=None) if isinstance(gradient, LikelihoodRows) else gradient


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt.ids) + len(rollout.completion_ids)
