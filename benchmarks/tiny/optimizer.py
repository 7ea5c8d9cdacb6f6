"""Muon for the matrices of the blocks, AdamW for all else (embedding, norms, biases)."""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon"


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is made orthogonal; in float32, which a CPU without bfloat16 units needs.

    The update is scaled to the root mean square an AdamW update has (0.2, after Liu et al. 2025, arXiv 2502.16982), so
    that learning rates and weight decay mean what they mean there.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, decay: float = 0.1):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update; matrices of one shape go through the iteration together. Every parameter needs a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                momenta = []
                for parameter in parameters:
                    assert parameter.grad is not None
                    if parameter not in self.state:
                        self.state[parameter]["momentum"] = torch.zeros_like(parameter)
                    momentum = self.state[parameter]["momentum"]
                    momentum.lerp_(parameter.grad, 1 - group["momentum"])
                    momenta.append(parameter.grad.lerp(momentum, group["momentum"]))
                updates = orthogonal(torch.stack(momenta))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """The nearest half-orthogonal matrices, roughly (singular values in about 0.7..1.2), by Newton and Schulz.

    `matrices` is [count, out, in]; the cost is about fifteen products of that size.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide
