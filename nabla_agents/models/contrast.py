"""Contrast: two readings of the same tokens, and what the one finds likelier than the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.errors import VocabularyMismatchError
from nabla_agents.functional import HEAD_CHUNK
from nabla_agents.models.gradients import GradientRows, LikelihoodRows, row_flops
from nabla_agents.models.language_model import LanguageModel, longest
from nabla_agents.types import Rollout, Usage


@dataclass(frozen=True, eq=False)
class Contrast:
    """c_t(v) = β · [log π_A(v | a, y_<t) - log π_B(v | b, y_<t)] in nats times β, for two readings of one completion y:
    by a model A behind a prompt a, and by a model B behind a prompt b.

    Both are held as the states [time, hidden] of one forward pass each; rows are built where they are asked for. Where
    the readings carry gradients through embeddings, so do the rows.

    Args:
        floor: nats; less likely tokens than e^-floor count as that likely, so that what neither reading would write
            makes no noise, and no row is beyond ±β·floor. None is no floor.
    """

    first: GradientRows
    second: GradientRows
    beta: float = 1.0
    floor: float | None = None

    @property
    def row_flops(self) -> float:
        return row_flops(self.first) + row_flops(self.second)

    def rows(self, positions: Sequence[int]) -> Float[Tensor, "n vocab"]:
        first, second = (reading.rows(positions) for reading in (self.first, self.second))
        if self.floor is not None:
            first, second = first.clamp_min(-self.floor), second.clamp_min(-self.floor)
        return self.beta * first - self.beta * second.to(first)  # B may sit on another device

    def written(self, tokens: Sequence[int]) -> Float[Tensor, "time"]:
        """c_t of a completion's own tokens: what each loses (below 0) or gains by A, a chunk of rows at a time."""
        parts: list[Tensor] = []
        for first in range(0, len(tokens), HEAD_CHUNK):
            places = range(first, min(first + HEAD_CHUNK, len(tokens)))
            rows = self.rows(places)
            own = torch.tensor([tokens[p] for p in places], device=rows.device)
            parts.append(rows.gather(-1, own[:, None])[:, 0])
        return torch.cat(parts) if parts else torch.zeros(0)


Reading = tuple[LikelihoodRows, Usage]


@torch.no_grad()
def readings(rollouts: Sequence[Rollout], models: Sequence[LanguageModel]) -> list[Reading]:
    """Each rollout as a model reads it behind the rollout's prompt, and what that cost, as a reward's tokens.

    One forward each; those of one model in one batch, a prompt once for as long as the `Prompt` object is in use.
    """
    rows: dict[int, Reading] = {}
    for model in dict.fromkeys(models):
        mine = [i for i, other in enumerate(models) if other is model]
        chosen = [rollouts[i] for i in mine]
        rows.update(zip(mine, likelihoods(model, chosen, [0] * len(mine), embedding_terms=False), strict=True))
    return [rows[i] for i in range(len(rollouts))]


def likelihoods(
    model: LanguageModel, rollouts: Sequence[Rollout], starts: Sequence[int], *, embedding_terms: bool
) -> list[Reading]:
    """The gradient of each rollout's log-likelihood by a model that serves a reward, and what it cost, the reading of
    its prompt included.
    """
    prompts = model.read_prompts([r.prompt for r in rollouts], longest=longest(rollouts))
    passes = model.likelihood_gradient(rollouts, starts, embedding_terms=embedding_terms)
    return [(p.gradient, as_reward_usage(p.usage + more)) for p, more in zip(passes, prompts, strict=True)]


def as_reward_usage(usage: Usage) -> Usage:
    """Tokens of a language model that serves as a reward are the reward's."""
    return replace(
        usage,
        prefill_tokens=0,
        lm_forward_tokens=0,
        lm_backward_tokens=0,
        reward_forward_tokens=usage.lm_forward_tokens,
        reward_backward_tokens=usage.lm_backward_tokens,
    )


def check_same_tokens(one: LanguageModel, other: LanguageModel, *, user: str, instead: str) -> None:
    """Raises VocabularyMismatchError where two models have different tokens."""
    if one.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise VocabularyMismatchError(
            f"{user} compares token by token, but {one.name} and {other.name} have different vocabularies "
            f"({len(one.tokenizer.hf)} and {len(other.tokenizer.hf)} tokens). {instead}"
        )
