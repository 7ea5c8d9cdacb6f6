"""One forward (and backward) of a transformer over a batch of readings, prompts read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.types import Prompt


@dataclass(frozen=True, eq=False)
class Pass:
    """What a batch of readings gave: per reading what was read at its positions [n, any], and the tokens computed.

    `leaves` are the embeddings that carry gradient, together one row per reading from its start on.
    """

    outputs: list[Tensor]
    leaves: list[Tensor]
    forward: list[int]
    backward: list[int]

    def gradients(self, values: Sequence[Float[Tensor, ""]]) -> list[Float[Tensor, "fed hidden"]]:
        """∂ Σ values / ∂ embeddings, for each reading from its start on."""
        return [row for leaf in torch.autograd.grad(torch.stack([*values]).sum(), self.leaves) for row in leaf]


def read_states(
    transformer: Transformer,
    readings: Sequence[Reading],
    prompts: Sequence[Prompt],
    starts: Sequence[int] | None = None,
) -> Pass:
    """The hidden states at each reading's positions.

    From `starts` on, which are indices of ids, embeddings carry gradient; what stands before is read without. The head
    of a prompt is read once while a request lasts, and counted where it comes first.
    """
    heads = [r.ids[: r.head] for r in readings]
    longest = 2 * max(len(r.ids) for r in readings)  # at most: what is known of one row, and what is fed of another
    caches, prefilled = transformer.prompt_caches(prompts, heads, longest=longest)
    if starts is None:
        known = [r.ids[: len(c.ids) if c else 0] for r, c in zip(readings, caches, strict=True)]
    else:
        known = [r.ids[:start] for r, start in zip(readings, starts, strict=True)]
    fed = [r.ids[len(k) :] for r, k in zip(readings, known, strict=True)]
    width = max(map(len, fed))
    context, before = transformer.read(known, caches, total_tokens=max(map(len, known)) + width)
    device, ragged = transformer.device, any(len(row) < width for row in fed)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in fed], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in fed], device=device)
    embeddings = transformer.embed(ids).detach().requires_grad_(starts is not None)
    with torch.set_grad_enabled(starts is not None):
        hidden = transformer.extend(context, embeddings=embeddings, mask=mask if ragged else None)
        outputs = [
            # Seen from the end of what is known, states of known tokens are right-aligned.
            torch.stack([hidden[i, p - len(k)] if p >= len(k) else before[i, p - len(k)] for p in reading.read_at])
            for i, (reading, k) in enumerate(zip(readings, known, strict=True))
        ]
    forward = [before.shape[1] + width + extra for extra in prefilled]
    return Pass(outputs, [embeddings], forward, [0 if starts is None else width] * len(readings))
