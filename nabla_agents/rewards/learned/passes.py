"""One forward (and backward) of a reward model over a batch of readings, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nabla_agents.errors import ModelLoadError, NablaError
from nabla_agents.functional import wide
from nabla_agents.models.transformer import Transformer
from nabla_agents.rewards.learned.heads import applied
from nabla_agents.rewards.learned.reading import Reading
from nabla_agents.types import Prompt


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a batch of readings gave: the scores at each one's positions [n, labels], and the tokens computed for it.

    `leaves` are the embeddings that carry gradient, together one row per reading from its start on.
    """

    scores: list[Tensor]
    leaves: list[Tensor]
    forward: list[int]
    backward: list[int]

    def gradients(self, values: Sequence[Float[Tensor, ""]]) -> list[Float[Tensor, "fed hidden"]]:
        """∂ Σ values / ∂ embeddings, for each reading from its start on."""
        return [row for leaf in torch.autograd.grad(torch.stack([*values]).sum(), self.leaves) for row in leaf]


@dataclass(frozen=True, eq=False)
class HeadPass:
    """A head on the hidden states at each reading's positions.

    The head of a prompt is read once while a request lasts, and counted where it comes first. From `starts` on, which
    are indices of ids, embeddings carry gradient; what stands before is read without.
    """

    transformer: Transformer
    head: nn.Module
    differentiable: bool = True

    def run(
        self, readings: Sequence[Reading], prompts: Sequence[Prompt], starts: Sequence[int] | None = None
    ) -> Outputs:
        heads = [r.ids[: r.head] for r in readings]
        longest = 2 * max(len(r.ids) for r in readings)  # at most: what is known of one row, and what is fed of another
        caches, prefilled = self.transformer.read_prompts(prompts, heads, longest=longest)
        ends = [len(c.ids) if c else 0 for c in caches] if starts is None else starts
        known = [r.ids[:end] for r, end in zip(readings, ends, strict=True)]
        rest = [r.ids[end:] for r, end in zip(readings, ends, strict=True)]
        before, after, embeddings = self.transformer.continued(known, rest, caches, needs_grad=starts is not None)
        read, fed = before.shape[1], after.shape[1]
        with torch.set_grad_enabled(starts is not None):
            scores = [
                # Seen from the end of what is known, states of known tokens are right-aligned.
                applied(self.head, torch.stack([(after if p >= end else before)[i, p - end] for p in reading.read_at]))
                for i, (reading, end) in enumerate(zip(readings, ends, strict=True))
            ]
        forward = [read + fed + extra for extra in prefilled]
        return Outputs(scores, [embeddings], forward, [0 if starts is None else fed] * len(readings))


class OwnPass:
    """A score that the model's own forward pass computes, one text at a time: how it treats padding is not known.

    It is differentiable if that pass takes embeddings in place of ids, which is tried once, on the ids of `sample`.

    Raises:
        ModelLoadError: its output has no such score.
    """

    def __init__(self, transformer: Transformer, *, output: str, name: str, sample: Sequence[int]) -> None:
        self.transformer, self.output, self.name = transformer, output, name
        self.differentiable = self._takes_embeddings(sample)

    def run(
        self, readings: Sequence[Reading], prompts: Sequence[Prompt], starts: Sequence[int] | None = None
    ) -> Outputs:
        lengths = [len(r.ids) for r in readings]
        ids = [torch.tensor([r.ids], device=self.transformer.device) for r in readings]
        if starts is None:
            return Outputs([self._score(input_ids=row) for row in ids], [], lengths, [0] * len(lengths))
        embedded = [self.transformer.embed(row).detach() for row in ids]
        leaves = [row[:, start:].clone().requires_grad_() for row, start in zip(embedded, starts, strict=True)]
        with torch.enable_grad():
            scores = [
                self._score(inputs_embeds=torch.cat([row[:, :start], leaf], dim=1))
                for row, leaf, start in zip(embedded, leaves, starts, strict=True)
            ]
        return Outputs(scores, leaves, lengths, lengths)

    def _score(self, **inputs: Tensor) -> Float[Tensor, "one one"]:
        [tensor] = inputs.values()
        mask = torch.ones(tensor.shape[:2], dtype=torch.long, device=tensor.device)
        output: Any = self.transformer.module(**inputs, attention_mask=mask)
        score = getattr(output, self.output, None)
        if not isinstance(score, Tensor) or score.numel() != 1:
            shape = tuple(score.shape) if isinstance(score, Tensor) else score
            attributes = ", ".join(k for k, v in vars(output).items() if v is not None)
            raise ModelLoadError(
                f"The output of {self.name} has {shape!r} as `{self.output}`; expected one number for one "
                f"text. It has: {attributes}. Name the attribute of the score in OutcomeFormat(output=...)."
            )
        return wide(score).reshape(1, 1)

    @torch.no_grad()
    def _takes_embeddings(self, sample: Sequence[int]) -> bool:
        ids = torch.tensor([list(sample)], device=self.transformer.device)
        expected = self._score(input_ids=ids)
        try:
            score = self._score(inputs_embeds=self.transformer.embed(ids))
        except NablaError:
            raise
        except Exception:  # code that a checkpoint ships fails in its own way without ids
            return False
        return torch.allclose(score, expected, rtol=2e-2, atol=2e-2)


Pass = HeadPass | OwnPass  # how a reward model runs
