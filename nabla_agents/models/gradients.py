"""Gradients by the tokens of a rollout: [time, hidden] vectors; rows over the vocabulary are built on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.functional import wide
from nabla_agents.models.causal_model import CausalModel
from nabla_agents.models.transformer import Transformer


class GradientRows(Protocol):
    """A gradient with respect to the one-hot rows of a rollout's tokens."""

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        """∂/∂(one-hot row) at these completion positions, in the language model's vocabulary, fp32 or better."""
        ...


@dataclass(eq=False)
class Meter:
    """FLOPs of rows that were built on demand."""

    flops: float = 0.0


def row_flops(gradient: GradientRows) -> float:
    """FLOPs of building one row; 0 for gradients that say nothing of it."""
    return float(getattr(gradient, "row_flops", 0.0))


@dataclass(frozen=True, eq=False)
class LikelihoodRows:
    """Of Σ log π: the direct term log π(v | …) and the embedding term E[v]·a_t.

    `hidden` [time, hidden] are the states that predict the tokens from position `start` on; `embedding_gradient`
    [time, hidden] is a, or None where only the direct term is wanted. `meter` counts `logits`, not `rows`.
    """

    model: CausalModel
    start: int
    hidden: Tensor
    embedding_gradient: Tensor | None
    meter: Meter = field(default_factory=Meter)

    @property
    def row_flops(self) -> float:
        embedded = 0.0 if self.embedding_gradient is None else self.model.transformer.score_flops
        return self.model.head_flops + embedded

    def logits(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        """The model's logits at these positions of the completion."""
        self.meter.flops += len(positions) * self.model.head_flops
        return self._logits(positions)

    def _logits(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        return self.model.head(self.hidden[[p - self.start for p in positions]])

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        direct = wide(self._logits(positions)).log_softmax(-1)
        if self.embedding_gradient is None:
            return direct
        a = self.embedding_gradient[[p - self.start for p in positions]]
        return direct + wide(self.model.transformer.embedding_scores(a))


@dataclass(frozen=True, eq=False)
class EmbeddingRows:
    """Of a reward that reads the tokens' embeddings: E_RM[v]·b_t, with `embedding_gradient` b [time, hidden].

    `vocab_size` is the language model's; rows are cut or padded by zeros to it (embedding matrices are often padded
    beyond the tokenizer). Where the reward has another vocabulary, `counterparts` [vocab] has its token for each of
    the language model's, -1 where there is none, and `written` [time] the reward's tokens at the same positions.
    """

    transformer: Transformer
    start: int
    embedding_gradient: Tensor
    vocab_size: int
    counterparts: Tensor | None = None
    written: Tensor | None = None

    @property
    def row_flops(self) -> float:
        return self.transformer.score_flops

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        at = [p - self.start for p in positions]
        scores = wide(self.transformer.embedding_scores(self.embedding_gradient[at]))
        if self.counterparts is None or self.written is None:
            return fitted(scores, self.vocab_size)
        # What a token without a counterpart would change is unknown: it gets the written token's value, that is, no
        # gain. Zero would be the value of an empty embedding, an arbitrary distance from the written one.
        unknown = scores.gather(1, self.written[at][:, None])
        return torch.where(self.counterparts < 0, unknown, scores[:, self.counterparts.clamp_min(0)])


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Σ weight · gradient."""

    terms: tuple[tuple[float, GradientRows], ...]

    @property
    def row_flops(self) -> float:
        return sum(row_flops(gradient) for weight, gradient in self.terms if weight != 0)

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        rows = [weight * gradient.rows(positions) for weight, gradient in self.terms if weight != 0]
        # Learned rewards may sit on another device or in another precision than the language model.
        return torch.stack([r.to(rows[0]) for r in rows]).sum(0)


@dataclass(frozen=True, eq=False)
class PositiveRows:
    """What is above 0 in a gradient."""

    gradient: GradientRows

    @property
    def row_flops(self) -> float:
        return row_flops(self.gradient)

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        return self.gradient.rows(positions).clamp_min(0)


@dataclass(frozen=True, eq=False)
class CreditRows:
    """Sparse credit c_t(v) from tool verdicts: {position: {token: credit in nats}}."""

    credit: Mapping[int, Mapping[int, float]]
    vocab_size: int
    device: torch.device

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        rows = torch.zeros(len(positions), self.vocab_size, device=self.device)
        for i, position in enumerate(positions):
            for token, credit in self.credit.get(position, {}).items():
                rows[i, token] += credit
        return rows


def embedding_terms(likelihoods: Sequence[GradientRows]) -> bool:
    """Whether gradients through embeddings are wanted beside these; they are where nothing says otherwise."""
    own = [c for c in likelihoods if isinstance(c, LikelihoodRows)]
    return not own or any(c.embedding_gradient is not None for c in own)


def token_gradient(gradient: Float[Tensor, "fed hidden"], tail_length: int) -> Float[Tensor, "time hidden"]:
    """From fed embeddings to tail tokens: the first fed embedding is the token before the tail; the last token, which
    is not fed, has gradient zero.
    """
    shifted = gradient[1 : tail_length + 1]
    return torch.nn.functional.pad(shifted, (0, 0, 0, tail_length - shifted.shape[0]))


def fitted(rows: Float[Tensor, "n any"], vocab_size: int) -> Float[Tensor, "n vocab"]:
    """Cut, or padded with zeros, to the language model's vocabulary."""
    return torch.nn.functional.pad(rows, (0, vocab_size - rows.shape[-1]))
