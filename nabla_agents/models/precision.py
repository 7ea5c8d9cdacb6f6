"""Half precision: where it is fast, what is computed in float32 nevertheless, and how far the rest is to be trusted."""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import nn

from nabla_agents.functional import NARROW

_UNITS: Final = ("avx512_bf16", "amx_bf16", "bf16")
NOISE: Final = 0.25
"""Nats by which two readings of one completion may differ in log π, since what shares a batch decides roundings."""


def fastest() -> torch.dtype:
    """bfloat16 where the device computes with it, a GPU or a CPU with AVX512-BF16, AMX or Arm's BF16; else float32.

    On a CPU with AVX512-BF16 it takes 0.7 times float32's processor time with SmolLM2-135M (`benchmarks/quantised.py`).
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if bfloat16_units() else torch.float32


def bfloat16_units() -> list[str]:
    """What this CPU computes bfloat16 with; nothing where PyTorch is too old to say it."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return [unit for unit in _UNITS if able.get(unit)]


def widened(head: nn.Module | None) -> nn.Module | None:
    """A head in fp32 or better: a copy of one in half precision. Rounded outputs, logits most of all, cost more than a
    second copy of the weights: between 16 and 32, bfloat16 has a number every eighth of a nat.

    A head whose weights are elsewhere (offloaded) stays as it is, and so does none.
    """
    weights = [] if head is None else list(head.parameters())
    if head is None or any(w.is_meta for w in weights) or not any(w.dtype in NARROW for w in weights):
        return head
    return copy.deepcopy(head).float().requires_grad_(False)
