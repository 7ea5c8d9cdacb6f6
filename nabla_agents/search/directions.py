"""The directions to choose from, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nabla_agents.config import Settings
from nabla_agents.search.contrasts import FeedbackDirection, PeerDirection
from nabla_agents.search.direction import Addable, Directed, Direction, name_of
from nabla_agents.search.pool import Scored
from nabla_agents.search.search import GRADIENT, Search


class GradientDirection(Settings, Addable):
    """The objective's gradient: likelihood, learned rewards, and the verdicts of tools. One gradient pass."""

    name: ClassVar[str] = "gradient"

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        if search.exhausted(GRADIENT):
            return None
        gradient = await search.gradient(entry, start, outcome_weight=outcome_weight)
        return Directed(lambda places, _: gradient.rows(places), gradient.likelihood, gradient.credit, explains=True)


class RandomDirection(Settings, Addable):
    """A control: Gaussian rows with the mean and spread that the gradient has over the tokens considered; its cost."""

    name: ClassVar[str] = "random"

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        if search.exhausted(GRADIENT):
            return None
        gradient = await search.gradient(entry, start, outcome_weight=outcome_weight)

        def rows(positions: Sequence[int], considered: Bool[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
            g = gradient.rows(positions).to(considered.device)
            count = considered.sum(-1, keepdim=True)
            mean = torch.where(considered, g, 0.0).sum(-1, keepdim=True) / count
            spread = torch.where(considered, (g - mean).square(), 0.0).sum(-1, keepdim=True).div(count).sqrt()
            return mean + spread * torch.randn(g.shape, generator=search.generator).to(g)

        return Directed(rows, gradient.likelihood)


class NoDirection(Settings, Addable):
    """A control: the language model's own rows, moved nowhere. One forward, no gradient pass."""

    name: ClassVar[str] = "none"

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        return Directed(lambda _, considered: torch.zeros_like(considered, dtype=torch.float32))


_NAMED: Final[Sequence[Direction]] = (
    GradientDirection(),
    RandomDirection(),
    NoDirection(),
    FeedbackDirection(),
    PeerDirection(),
    GradientDirection() + FeedbackDirection(),
    GradientDirection() + PeerDirection(),
)
DIRECTIONS: Final[Mapping[str, Direction]] = {name_of(direction): direction for direction in _NAMED}
"""By the names that the command line and files have for them."""
