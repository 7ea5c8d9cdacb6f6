"""Half precision: what is computed in float32 nevertheless, and how far the rest is to be trusted."""

from __future__ import annotations

import copy
from typing import Final

from torch import nn

from nabla_agents.functional import NARROW

NOISE: Final = 0.25
"""Nats by which two readings of one completion may differ in log π, since what shares a batch decides roundings."""


def widened(head: nn.Module | None) -> nn.Module | None:
    """A head in fp32 or better: a copy of one in half precision. Rounded outputs, logits most of all, cost more than a
    second copy of the weights: between 16 and 32, bfloat16 has a number every eighth of a nat.

    A head whose weights are elsewhere (offloaded) stays as it is, and so does none.
    """
    weights = [] if head is None else list(head.parameters())
    if head is None or any(w.is_meta for w in weights) or not any(w.dtype in NARROW for w in weights):
        return head
    return copy.deepcopy(head).float().requires_grad_(False)
