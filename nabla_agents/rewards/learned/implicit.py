"""Implicit process rewards: the log-ratio of a tuned causal language model and its reference."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from transformers import AutoModelForCausalLM

from nabla_agents import tiny
from nabla_agents.errors import ConfigurationError, ContextOverflowError, VocabularyMismatchError
from nabla_agents.models.gradients import GradientRows, WeightedRows, embedding_terms
from nabla_agents.models.language_model import LanguageModel, longest
from nabla_agents.models.loading import Loading, LoadingOptions, load
from nabla_agents.rewards.base import DifferentiableReward, Reward, RewardGradient
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.types import FinishReason, Rollout, Score, Usage


class ImplicitReward(SelfTested, DifferentiableReward):
    """r(y) = β · Σ_t [log π_φ(y_t | …) - log π_ref(y_t | …)], in nats times β, unbounded.

    Dense and differentiable without step labels (Yuan et al. 2024, arXiv 2412.01981). The reference is the engine's
    language model unless one is given; then the rollouts' own log-likelihoods serve and cost nothing. Cost: one
    forward of φ per score, one forward+backward per gradient (and as much of a separate reference).

    Raises:
        ContextOverflowError: from `score`, for a text longer than the context of φ or the reference.
    """

    def __init__(self, model: LanguageModel, reference: LanguageModel | None = None, *, beta: float = 1.0) -> None:
        if not beta > 0:
            raise ConfigurationError(f"ImplicitReward beta is {beta!r}; expected a positive number.")
        if reference is not None:
            _check_vocabulary(model, reference)
        self.model, self.reference, self.beta = model, reference, beta
        self.label, self.tokenizer, self.transformer = model.name, model.tokenizer, model.transformer
        self._policy: LanguageModel | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        reference: str | Path | None = None,
        *,
        beta: float = 1.0,
        **loading: Unpack[LoadingOptions],
    ) -> ImplicitReward:
        """Loads φ (and a reference); `tiny` is the embedded process reward. Options as in `Loading`."""
        options = Loading(**loading)

        def lm(which: str | Path) -> LanguageModel:
            module, tokenizer = load(which, AutoModelForCausalLM, options, tiny_path=tiny.REWARD_PATH)
            return LanguageModel(module, tokenizer, name=f"reward {which}")

        return cls(lm(name), None if reference is None else lm(reference), beta=beta)

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
        reference = self._reference_log_likelihoods(rollouts)
        return [
            Score(
                self.beta * float(log_probs.sum() - ref),
                usage=_as_reward_usage(usage + ref_usage) + Usage(reward_calls=1),
            )
            for (log_probs, usage), (ref, ref_usage) in zip(tuned, reference, strict=True)
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
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient]:
        terms = embedding_terms(likelihoods)
        tuned = _likelihood_gradients(self.model, rollouts, starts, terms)
        reference = [(gradient, Usage()) for gradient in likelihoods]
        if self.reference is not None and self.reference is not self._policy:
            reference = _likelihood_gradients(self.reference, rollouts, starts, terms)
        return [
            RewardGradient(WeightedRows(((self.beta, t), (-self.beta, r))), _as_reward_usage(usage + more))
            for (t, usage), (r, more) in zip(tuned, reference, strict=True)
        ]

    @property
    def _context_length(self) -> int:
        """Tokens that both models can read."""
        return min(m.context_length for m in (self.model, self.reference) if m is not None)

    def _in_ids(self, rollout: Rollout) -> Rollout:
        """A completion that is known as text only, in φ's ids."""
        if rollout.completion_ids or not rollout.text:
            return rollout
        eos = self.tokenizer.eos_id
        ended = (eos,) if eos is not None and rollout.finish_reason is FinishReason.STOP else ()
        prompt = rollout.prompt if rollout.prompt.ids else self.model.prompt(rollout.prompt.messages)
        return replace(rollout, prompt=prompt, completion_ids=(*self.tokenizer.encode(rollout.text), *ended))

    def _reference_log_likelihoods(self, rollouts: Sequence[Rollout]) -> list[tuple[float, Usage]]:
        if self.reference is None:
            raise ConfigurationError(
                "ImplicitReward has no reference model: pass one, or use it through an Engine, whose language model "
                "then serves as reference."
            )
        if self.reference is self._policy and all(r.log_probs is not None for r in rollouts):
            return [(r.log_likelihood, Usage()) for r in rollouts]
        return [(float(log_probs.sum()), usage) for log_probs, usage in self.reference.token_log_probs(rollouts)]


def _check_vocabulary(tuned: LanguageModel, other: LanguageModel) -> None:
    if tuned.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise VocabularyMismatchError(
            f"ImplicitReward compares token by token, but {tuned.name} and {other.name} have different vocabularies "
            f"({len(tuned.tokenizer.hf)} and {len(other.tokenizer.hf)} tokens). Use a reward model tuned from the "
            "language model's family, or an OutcomeReward, which reads text."
        )


def _likelihood_gradients(
    model: LanguageModel, rollouts: Sequence[Rollout], starts: Sequence[int], embedding_terms: bool
) -> list[tuple[GradientRows, Usage]]:
    """Each rollout's gradient and what it cost, the reading of its prompt included."""
    prompts = model.read_prompts([r.prompt for r in rollouts], longest=longest(rollouts))
    passes = model.likelihood_gradient(rollouts, starts, embedding_terms=embedding_terms)
    return [(p.gradient, p.usage + prompt.usage) for p, prompt in zip(passes, prompts, strict=True)]


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt.ids) + len(rollout.completion_ids)


def _as_reward_usage(usage: Usage) -> Usage:
    """Tokens of a language model that serves as a reward are the reward's."""
    return replace(
        usage,
        prefill_tokens=0,
        lm_forward_tokens=0,
        lm_backward_tokens=0,
        reward_forward_tokens=usage.lm_forward_tokens,
        reward_backward_tokens=usage.lm_backward_tokens,
    )
