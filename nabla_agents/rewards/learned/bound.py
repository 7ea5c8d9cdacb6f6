"""A reward model beside the language model whose completions it judges: what is the same token, how far it steers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.models.gradients import EmbeddingRows, GradientRows, embedding_terms
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.rewards.base import DifferentiableReward, RewardGradient
from nabla_agents.rewards.learned.alignment import Alignment
from nabla_agents.rewards.learned.golden import SelfTested
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.rewards.learned.reward_model import RewardModel
from nabla_agents.types import Coverage, FinishReason, Rollout, Score


@final
class BoundReward(SelfTested, DifferentiableReward):
    """What `bind` of an `OutcomeReward` or a `ProcessReward` gives: its score of a language model's completions, and
    the gradient.

    The text is the truth: with another vocabulary than the language model's, or in a format that changes the text, the
    completion is tokenised anew. The gradient then reaches the tokens that are one token in both; where they are fewer
    than `min_coverage` of the language model's vocabulary, or of a completion's tokens, the reward scores and accepts
    but does not steer, which a warning says. Nor does it where the engine wants no embedding terms: it has no other.

    Cost: one forward per score, one forward and backward per gradient; a prompt that a batch shares is read once.

    Raises:
        ContextOverflowError: from `score`, for a text longer than the model's context or the format's `max_length`.
    """

    def __init__(self, model: RewardModel, policy: LanguageModel) -> None:
        self.model, self.policy = model, policy
        self.label, self.tokenizer, self.transformer = model.name, model.tokenizer, model.transformer
        self.alignment = Alignment.between(policy.tokenizer, model.tokenizer, policy.vocab_size)
        self.steers = model.runs.differentiable and self.alignment.share >= model.min_coverage
        counterparts = self.alignment.counterparts
        self._counterparts = None if counterparts is None else counterparts.to(model.transformer.device)
        templates = [t.hf.chat_template for t in (model.tokenizer, policy.tokenizer)]
        self._same_template = counterparts is None and templates[0] == templates[1]
        if not self.steers:
            reason = (
                f"{self.label} and {policy.name} have different vocabularies, with {self.alignment.share:.0%} of the "
                f"language model's tokens in both (min_coverage={model.min_coverage:g})"
                if model.runs.differentiable
                else f"the score of {self.label} is not a function of embeddings"
            )
            warnings.warn(
                f"{self.name}: {reason}; the reward scores and accepts by text, but does not steer (no gradient).",
                stacklevel=3,
            )

    @property
    def name(self) -> str:
        return self.model.kind

    def bind(self, model: LanguageModel) -> BoundReward:
        return BoundReward(self.model, model)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    def reading(self, rollout: Rollout) -> Reading:
        """What the model reads for a rollout, and which of its ids stand for which tokens of the language model."""
        ids = rollout.completion_ids
        visible = ids[:-1] if ids and ids[-1] in self.policy.eos_ids else ids
        terminal = ids[len(visible) :]
        in_its_ids = self._reads_ids_of(rollout, visible)
        forging = self.tokenizer.special_tokens  # they have no text, and would begin a turn
        reading = self.model.read(
            rollout,
            ended=bool(terminal) if in_its_ids else rollout.finish_reason is FinishReason.STOP,
            same_template=self._same_template,
            written=[token for token in visible if token not in forging] if in_its_ids else None,
        )
        if reading.problem:
            return reading
        if in_its_ids:
            places = count(reading.head)
            sources = [-1 if token in forging else next(places) for token in visible]
        else:
            sources = self._aligned(visible, reading)
        closing = reading.closing if self.model.scoring.verbatim else len(reading.ids)
        sources += [self._same_token(t, reading.ids, closing) for t in terminal]
        return replace(reading, sources=tuple(sources))

    def _reads_ids_of(self, rollout: Rollout, visible: Sequence[int]) -> bool:
        """Whether the model reads the completion in the very ids in which it was written; else its text anew."""
        same = self._counterparts is None and self.model.scoring.verbatim
        # A stop string is in the ids and not in the text.
        return same and bool(rollout.completion_ids) and self.tokenizer.decode(visible) == rollout.text

    def _aligned(self, visible: Sequence[int], reading: Reading) -> list[int]:
        """For each token of the language model the index of the one token that is read in its place."""
        ids, index = reading.ids, {span: i for i, span in enumerate(reading.spans) if span is not None}
        offsets = self.policy.tokenizer.token_offsets(visible)
        return [self._same_token(t, ids, index.get(span, len(ids))) for t, span in zip(visible, offsets, strict=True)]

    def _same_token(self, token: int, ids: Sequence[int], index: int) -> int:
        """The index, if the id there is the counterpart of this token of the language model; else -1."""
        return index if index < len(ids) and self.alignment.counterpart(token) == ids[index] else -1

    # ── scores and gradients ──────────────────────────────────────────────────────────────────────────────────────

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        readings = [self.reading(r) for r in rollouts]
        scores = self.model.score(rollouts, readings)
        return [replace(s, coverage=self._coverage(r)) for s, r in zip(scores, readings, strict=True)]

    def _coverage(self, reading: Reading) -> tuple[Coverage, ...]:
        if reading.problem or not reading.sources:
            return ()
        if not self.model.runs.differentiable:
            return (Coverage(self.label, 0.0, 0.0),)
        return (Coverage(self.label, self.alignment.share, reading.share),)

    def gradient(
        self, rollouts: Sequence[Rollout], starts: Sequence[int], likelihoods: Sequence[GradientRows]
    ) -> list[RewardGradient | None]:
        gradients: list[RewardGradient | None] = [None] * len(rollouts)
        if not self.steers or not embedding_terms(likelihoods):
            return gradients
        readings = [self.reading(r) for r in rollouts]
        steered = [i for i, (r, start) in enumerate(zip(readings, starts, strict=True)) if self._reaches(r, start)]
        if not steered:
            return gradients
        firsts = [min(s for s in readings[i].sources[starts[i] :] if s >= 0) for i in steered]
        by_index = self.model.gradients([rollouts[i] for i in steered], [readings[i] for i in steered], firsts)
        for i, first, (gradient, usage) in zip(steered, firsts, by_index, strict=True):
            gradients[i] = RewardGradient(self._joined_gradient(readings[i], starts[i], first, gradient), usage)
        return gradients

    def _reaches(self, reading: Reading, start: int) -> bool:
        """Whether a gradient is worth its pass; warns of a completion that the reward reads in other tokens."""
        if reading.problem or len(reading.ids) > self.model.limit:
            return False
        if not any(0 <= s <= max(reading.read_at) for s in reading.sources[start:]):
            return False  # nothing that is scored comes after a token that may change
        if reading.share < self.model.min_coverage:
            warnings.warn(
                f"{self.name}: fewer of a completion's tokens than min_coverage={self.model.min_coverage:g} are one "
                f"token of {self.label} too; for such completions the reward accepts, but does not steer.",
                stacklevel=2,
            )
            return False
        return True

    def _joined_gradient(
        self, reading: Reading, start: int, first: int, gradient: Float[Tensor, "fed hidden"]
    ) -> EmbeddingRows:
        """The gradient moved from ids to the language model's tokens; tokens without an id of their own have none."""
        sources = torch.tensor(reading.sources[start:], device=gradient.device)
        by_token = torch.where(sources[:, None] < 0, 0.0, gradient[(sources - first).clamp_min(0)])
        written = None
        if self._counterparts is not None:
            written = torch.tensor(reading.ids, device=gradient.device)[sources.clamp_min(0)]
        vocab_size = self.policy.vocab_size
        return EmbeddingRows(self.transformer, start, by_token, vocab_size, self._counterparts, written)
