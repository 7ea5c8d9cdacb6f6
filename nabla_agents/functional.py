"""Pure maths on tensors; shapes in the annotations. Everything is fp32 or better: log_softmax, masks by `where`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nabla_agents.config import Sampling

HEAD_CHUNK = 64  # positions whose [vocab] rows exist at a time
NARROW = (torch.float16, torch.bfloat16)


def token_log_probs(logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log softmax(logits)[token] in nats, without building the full log-softmax."""
    logits = wide(logits)
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)


def wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least fp32: half-precision probabilities and updates round away."""
    return x.float() if x.dtype in NARROW else x


def entropy(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
    """Entropy in nats; finite for rows in which tokens are masked by -inf."""
    log_p = wide(logits).log_softmax(-1)
    return -torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1)


def kl_divergence(
    logits: Float[Tensor, "*batch vocab"], reference_logits: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(softmax(logits) ‖ softmax(reference_logits)) in nats; a token masked in `logits` adds nothing."""
    log_p, log_q = wide(logits).log_softmax(-1), wide(reference_logits).log_softmax(-1)
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def projected(
    logits: Float[Tensor, "*batch vocab"], gradient: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch vocab"]:
    """p ⊙ (g - <p, g>): the gradient with respect to the logits of <g, softmax(logits)>."""
    p = wide(logits).softmax(-1)
    return p * (gradient - (p * gradient).sum(-1, keepdim=True))


def filtered_logits(logits: Float[Tensor, "*batch vocab"], sampling: Sampling) -> Float[Tensor, "*batch vocab"]:
    """Logits at the sampling temperature with tokens outside top-k, top-p and min-p at -inf.

    Order as in transformers: temperature, top-k, top-p, min-p. The most likely token is never removed.
    Requires temperature > 0.
    """
    logits = wide(logits)
    if sampling.temperature is not None:
        # Relative to the best, so that a temperature near 0 overflows to -inf only: greedy, not NaN.
        least = torch.finfo(logits.dtype).tiny
        logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, least)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = torch.where(logits < kth, -torch.inf, logits)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = torch.where(_outside_nucleus(logits, sampling.top_p), -torch.inf, logits)
    if sampling.min_p:
        log_p = logits.log_softmax(-1)
        floor = log_p.amax(-1, keepdim=True) + torch.tensor(sampling.min_p).log().item()
        logits = torch.where(log_p < floor, -torch.inf, logits)
    return logits


def _outside_nucleus(logits: Float[Tensor, "*batch vocab"], top_p: float) -> Bool[Tensor, "*batch vocab"]:
    ordered, order = logits.sort(-1, descending=True)
    p = ordered.softmax(-1)
    outside = p.cumsum(-1) - p >= top_p  # the mass before this token already suffices
    return torch.zeros_like(outside).scatter(-1, order, outside)


def choose_tokens(
    logits: Float[Tensor, "batch vocab"], sampling: Sampling, uniforms: Float[Tensor, "batch"]
) -> Int[Tensor, "batch"]:
    """The token each uniform number in [0, 1) selects by inverse transform; argmax at temperature 0.

    One uniform per token makes a rollout a function of its own random numbers, whatever shares its batch.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    cumulative = filtered_logits(logits, sampling).double().softmax(-1).cumsum(-1)
    target = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def choose_each(
    logits: Float[Tensor, "batch vocab"], samplings: Sequence[Sampling], uniforms: Float[Tensor, "batch"]
) -> Int[Tensor, "batch"]:
    """As `choose_tokens`, each row by its own sampling; equal ones together."""
    tokens = torch.empty(len(samplings), dtype=torch.long, device=logits.device)
    for sampling in dict.fromkeys(samplings):
        mine = [i for i, other in enumerate(samplings) if other == sampling]
        tokens[mine] = choose_tokens(logits[mine], sampling, uniforms[mine])
    return tokens


def likeliest(logits: Float[Tensor, "n vocab"], top: int) -> tuple[tuple[tuple[int, float], ...], ...]:
    """For each row its `top` likeliest tokens with log π in nats, the likeliest first."""
    rows = wide(logits).log_softmax(-1)
    values, tokens = rows.topk(min(top, rows.shape[-1]))
    ids: list[list[int]] = cast(Any, tokens).tolist()
    log_probs: list[list[float]] = cast(Any, values).tolist()
    return tuple(tuple(zip(*row, strict=True)) for row in zip(ids, log_probs, strict=True))
