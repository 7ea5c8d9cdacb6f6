"""Differentiable textual optimisation (DTO): a token's logits refined by the objective's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Protocol

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nabla_agents.config import Settings
from nabla_agents.functional import kl_divergence, projected, wide

_BISECTIONS = 30


class DTO(Protocol):
    """A rule that refines rows of logits; rows are independent of each other."""

    def refine(self, logits: Float[Tensor, "n vocab"], gradient: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        """New logits, fp32 or better; `gradient` is ∂J/∂ one-hot at the rollout's own tokens."""
        ...


class AdamDTO(Settings):
    """The published rule: AdamW on the logits with cosine learning rate, on the surrogate -<g, softmax(z/τ)>.

    The gradient row is that of the rollout's own text, so a row stops as soon as its argmax flips: beyond it, g
    would belong to another text (set `stop_on_flip=False` to take all steps).
    """

    steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.001
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    stop_on_flip: bool = True

    def refine(self, logits: Float[Tensor, "n vocab"], gradient: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        *_, refined = self.refinements(logits, gradient)
        return refined

    def refinements(
        self, logits: Float[Tensor, "n vocab"], gradient: Float[Tensor, "n vocab"]
    ) -> Iterator[Float[Tensor, "n vocab"]]:
        """The logits after each step, for who may have to stop before the last."""
        start = wide(logits).detach()
        z = start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([z], lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps, self.final_learning_rate)
        argmax = start.argmax(-1, keepdim=True)
        g = torch.where(start == -torch.inf, 0.0, gradient.to(start))  # a masked token stays masked
        refined = start
        for _ in range(self.steps):
            z.grad = -projected(z.detach() / self.temperature, g) / self.temperature
            optimizer.step()
            schedule.step()
            flipped = refined.argmax(-1, keepdim=True) != argmax
            moved = z.detach().clone()
            refined = torch.where(flipped, refined, moved) if self.stop_on_flip else moved
            yield refined


class MirrorDTO(Settings):
    """The KL-regularised optimum for one token, to first order: π'(v) ∝ π(v)·exp(β·g(v)).

    `kl_budget` in nats per token lowers β for a row until KL(π'‖π) keeps it; None leaves β as it is.
    """

    beta: Annotated[float, Field(ge=0)] = 1.0
    kl_budget: Annotated[float, Field(gt=0)] | None = None

    def refine(self, logits: Float[Tensor, "n vocab"], gradient: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        log_p = wide(logits).log_softmax(-1)
        g = torch.where(log_p == -torch.inf, 0.0, gradient.to(log_p))
        beta = torch.full_like(log_p[..., :1], self.beta)
        if self.kl_budget is not None:
            beta = self._within_budget(log_p, g, beta, self.kl_budget)
        return log_p + beta * g

    def _within_budget(
        self, log_p: Float[Tensor, "n vocab"], g: Float[Tensor, "n vocab"], beta: Float[Tensor, "n 1"], budget: float
    ) -> Float[Tensor, "n 1"]:
        """The largest β per row that keeps the budget; KL(π_β‖π) grows with β, and is at most β · (max g - min g)."""
        fits = kl_divergence(log_p + beta * g, log_p)[..., None] <= budget
        spread = (g.amax(-1, keepdim=True) - g.amin(-1, keepdim=True)).clamp_min(torch.finfo(g.dtype).tiny)
        low, high = torch.where(fits, beta, torch.minimum(beta, budget / spread)), beta
        for _ in range(_BISECTIONS):  # of the exponent: β may be many orders of magnitude too large
            middle = low.sqrt() * high.sqrt()
            inside = kl_divergence(log_p + middle * g, log_p)[..., None] <= budget
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return low
