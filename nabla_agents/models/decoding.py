"""Batched rollouts: completions sampled token by token from different prefixes of different prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.config import Sampling
from nabla_agents.functional import choose_tokens, token_log_probs
from nabla_agents.models.transformer import PrefixCache
from nabla_agents.types import FinishReason, Prompt, Rollout, Usage

if TYPE_CHECKING:
    from nabla_agents.models.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class RolloutJob:
    """One completion to sample: `prefix_ids` of it are given, up to `max_tokens` (prefix included) may be.

    `uniforms` [max_tokens] are the job's own random numbers in [0, 1), the i-th for completion token i, so its text
    does not depend on what shares the batch. `cache` may hold keys and values of the prompt.
    """

    prompt: Prompt
    prefix_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    uniforms: Tensor
    cache: PrefixCache | None = None


class RolloutBackend(Protocol):
    """Whatever can sample completions: the local model, or a server."""

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]: ...


@dataclass(eq=False)
class _Row:
    """A completion being written."""

    job: RolloutJob
    ids: list[int]
    log_probs: list[float]
    computed_tokens: int = 0
    prefilled_tokens: int = 0
    finish: FinishReason | None = None
    text: str | None = field(default=None)


@torch.no_grad()
def rollout(model: LanguageModel, jobs: Sequence[RolloutJob]) -> list[Rollout]:
    """Samples all jobs together; finished rows leave the batch. Costs one prefill and one forward per token."""
    if not jobs:
        return []
    rows = [_Row(job, list(job.prefix_ids), []) for job in jobs]
    contexts = [(*job.prompt.ids, *job.prefix_ids) for job in jobs]
    longest = max(len(job.prompt.ids) + job.max_tokens for job in jobs)
    context, hidden = model.transformer.read(contexts, [job.cache for job in jobs], total_tokens=longest)
    for i, row in enumerate(rows):
        row.prefilled_tokens = row.computed_tokens = hidden.shape[1]
        row.log_probs = _prefix_log_probs(model, hidden[i], row.job.prefix_ids)
        if row.ids:
            _close_if_finished(model, row)
    active, logits = _still_open(rows, list(range(len(rows))), context, model.head(hidden[:, -1]))
    while active:
        tokens = _chosen(logits, [rows[i] for i in active])
        log_probs = token_log_probs(logits, tokens).tolist()
        for i, token, log_prob in zip(active, tokens.tolist(), log_probs, strict=True):
            rows[i].ids.append(token)
            rows[i].log_probs.append(log_prob)
            _close_if_finished(model, rows[i])
        active, tokens = _still_open(rows, active, context, tokens)
        if active:
            for i in active:
                rows[i].computed_tokens += 1
            logits = model.head(model.transformer.extend(context, ids=tokens[:, None])[:, -1])
    return [_finished(model, row) for row in rows]


def _prefix_log_probs(model: LanguageModel, hidden: Float[Tensor, "time hidden"], prefix: Sequence[int]) -> list[float]:
    """log π of the given tokens; the state before the prefix is the one that predicts its first token."""
    predicting = hidden[hidden.shape[0] - 1 - len(prefix) : hidden.shape[0] - 1]
    return model.log_probs(predicting, prefix).tolist()


def _chosen(logits: Float[Tensor, "batch vocab"], rows: Sequence[_Row]) -> Tensor:
    """The next token of each row, by its own sampling and its own random numbers."""
    uniforms = torch.stack([row.job.uniforms[len(row.ids)] for row in rows])
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for sampling in dict.fromkeys(row.job.sampling for row in rows):
        mine = [i for i, row in enumerate(rows) if row.job.sampling == sampling]
        tokens[mine] = choose_tokens(logits[mine], sampling, uniforms[mine])
    return tokens


def _still_open(rows: Sequence[_Row], active: list[int], context: object, tensor: Tensor) -> tuple[list[int], Tensor]:
    """Drops finished rows from the batch and from a tensor that is aligned with it."""
    kept = [k for k, i in enumerate(active) if rows[i].finish is None]
    if len(kept) < len(active) and kept:
        index = torch.tensor(kept, device=tensor.device)
        context.select(index)  # type: ignore[attr-defined]
        tensor = tensor[index]
    return [active[k] for k in kept], tensor


def _close_if_finished(model: LanguageModel, row: _Row) -> None:
    """A terminal token, a stop string or the length ends a row, in this order."""
    if row.ids[-1] in model.eos_ids:
        row.finish = FinishReason.STOP
    elif row.job.sampling.stop and (text := _before_stop(model, row)) is not None:
        row.finish, row.text = FinishReason.STOP, text
    elif len(row.ids) >= row.job.max_tokens:
        row.finish = FinishReason.LENGTH


def _before_stop(model: LanguageModel, row: _Row) -> str | None:
    """The text before the first stop string, or None. Only the newest tokens are decoded until one is found."""
    stop = row.job.sampling.stop
    window = max(len(s.encode()) for s in stop) + 8  # a token is at least one byte; margin for merged characters
    recent = model.tokenizer.decode(row.ids[-window:])
    if not any(s in recent for s in stop):
        return None
    text = model.tokenizer.decode(row.ids)
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else None


def _finished(model: LanguageModel, row: _Row) -> Rollout:
    ids = tuple(row.ids)
    visible = ids[:-1] if ids and ids[-1] in model.eos_ids else ids
    usage = model.usage(prefill=row.prefilled_tokens, forward=row.computed_tokens - row.prefilled_tokens)
    return Rollout(
        prompt=row.job.prompt,
        completion_ids=ids,
        text=row.text if row.text is not None else model.tokenizer.decode(visible),
        log_probs=torch.tensor(row.log_probs, dtype=torch.float64),
        finish_reason=row.finish or FinishReason.STOP,
        usage=usage + Usage(rollouts=1, generated_tokens=len(ids) - len(row.job.prefix_ids)),
    )
