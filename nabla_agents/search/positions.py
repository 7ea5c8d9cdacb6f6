"""Which tokens are worth refining, and what the refined rows propose there."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from nabla_agents.chat.grammar import Grammar
from nabla_agents.config import Settings
from nabla_agents.functional import entropy, wide
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.models.tokenizer import Tokenizer
from nabla_agents.types import FinishReason, Rollout


class Refinable(Settings):
    """The tests a position passes before its token is refined; None switches a test off.

    `min_entropy` in nats and `max_probability` look at the language model's own row (paper: 0.25; research code:
    0.97). A tool's located verdict overrules both.
    """

    min_entropy: Annotated[float, Field(ge=0)] | None = None
    max_probability: Annotated[float, Field(gt=0, le=1)] | None = None

    def select(self, logits: Float[Tensor, "n vocab"]) -> Bool[Tensor, "n"]:
        """True where the row passes both tests."""
        chosen = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
        if self.min_entropy is not None:
            chosen &= entropy(logits) > self.min_entropy
        if self.max_probability is not None:
            chosen &= wide(logits).softmax(-1).amax(-1) <= self.max_probability
        return chosen


@dataclass(frozen=True)
class Proposal:
    """A token that the refined row prefers, or comes closest to preferring, over the written one.

    `promise` is log π'(new) - log π'(old) in nats under the refined row π'; `ranking_score` is g(new) - g(old), the
    change of the objective to first order; `log_odds` is log π(new) - log π(old) under the language model's own row π;
    `kl` is KL(π'‖π), how far the row was moved; `loss` is -g(old), what a contrast takes from the written token. All in
    nats.
    """

    position: int
    old: int
    new: int
    promise: float
    ranking_score: float
    log_odds: float = 0.0
    kl: float = 0.0
    loss: float = 0.0

    def prefix(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """What a completion begins with when this token of it has changed."""
        return (*ids[: self.position], self.new)

    def draft(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """What followed the token before, as a guess of what will follow."""
        return ids[self.position + 1 :]


def free_positions(rollout: Rollout, grammar: Grammar | None, tokenizer: Tokenizer) -> Container[int]:
    """The places of a completion that a grammar leaves to the search; all of them without one."""
    ids = rollout.completion_ids
    if grammar is None or grammar.refine:
        return range(len(ids))
    spans, offsets = grammar.free(rollout.text), tokenizer.token_offsets(ids)
    return {i for i, (a, b) in enumerate(offsets) if any(start <= a < b <= end for start, end in spans)}


def permitted_tokens(
    rollout: Rollout, grammar: Grammar | None, model: LanguageModel, positions: Sequence[int]
) -> Bool[Tensor, "n vocab"] | None:
    """What a grammar has at ascending places of a completion; None without a grammar."""
    if grammar is None:
        return None
    constraint, at = model.constraint(grammar), 0
    masks: list[Tensor] = []
    for position in positions:
        constraint.take(rollout.completion_ids[at:position])
        masks.append(torch.from_numpy(constraint.mask()))
        at = position
    return torch.stack(masks)


def prefix_with(model: LanguageModel, rollout: Rollout, position: int, token: int, log_odds: float) -> Rollout:
    """A rollout up to a position, with this token there; `log_odds` against the written one, in nats."""
    ids = (*rollout.completion_ids[:position], token)
    ended = token in model.eos_ids
    log_probs = None if rollout.log_probs is None else rollout.log_probs[: position + 1].clone()
    if log_probs is not None:
        log_probs[position] += log_odds
    return replace(
        rollout,
        completion_ids=ids,
        text=model.tokenizer.decode(ids[:-1] if ended else ids),
        log_probs=log_probs,
        finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
    )


def plausible(
    logits: Float[Tensor, "n vocab"], tokens: Int[Tensor, "n"], floor: float | None
) -> Bool[Tensor, "n vocab"]:
    """Tokens within `floor` nats of the written token's log-probability, the written token itself excluded."""
    log_p = wide(logits).log_softmax(-1)
    allowed = log_p > -torch.inf
    if floor is not None:
        allowed = log_p >= log_p.gather(-1, tokens[:, None]) - floor
    return allowed.scatter(-1, tokens[:, None], False)


def best_alternatives(
    positions: Sequence[int],
    tokens: Int[Tensor, "n"],
    logits: Float[Tensor, "n vocab"],
    refined: Float[Tensor, "n vocab"],
    gradient: Float[Tensor, "n vocab"],
    allowed: Bool[Tensor, "n vocab"],
    *,
    count: int = 1,
) -> list[Proposal]:
    """Per position its `count` most promising allowed tokens, the best first; fewer where fewer are allowed."""
    made: list[Proposal] = []
    for _ in range(min(count, refined.shape[-1])):
        promise, new = torch.where(allowed, refined, -torch.inf).max(-1)
        gain, odds = (_at(rows, new) - _at(rows, tokens) for rows in (gradient, wide(logits)))
        promise, loss = promise - _at(refined, tokens), -_at(gradient, tokens)
        columns = (column.tolist() for column in (tokens, new, promise, gain, odds, loss))
        rows = zip(positions, *columns, strict=True)
        made += [Proposal(*row[:6], loss=row[6]) for row in rows if row[3] > -torch.inf]
        allowed = allowed.scatter(-1, new[:, None], False)
    return sorted(made, key=lambda proposal: proposal.position)


def _at(rows: Float[Tensor, "n vocab"], tokens: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    return rows.gather(-1, tokens[:, None])[:, 0]
