"""Directions: where a search would move each row of a completion. Parts to choose from, and to add to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nabla_agents.config import Settings
from nabla_agents.models.gradients import LikelihoodRows
from nabla_agents.search.pool import Scored
from nabla_agents.search.search import GRADIENT, Search

Rows = Callable[[Sequence[int], Bool[Tensor, "n vocab"]], Float[Tensor, "n vocab"]]


@dataclass(frozen=True, eq=False)
class Directed:
    """One completion's rows, and where each is to be moved; both on demand.

    Args:
        likelihood: the language model's own rows.
        rows: g_t in nats for some positions, given the tokens that are considered at each.
        credit: {position: {token: nats}} that tools locate: exempt from the tests of what is plausible and refinable.
        explains: whether predicted gains say something of the written tokens, so that they are shown.
    """

    likelihood: LikelihoodRows
    rows: Rows
    credit: Mapping[int, Mapping[int, float]] = field(default_factory=dict[int, Mapping[int, float]])
    explains: bool = False


@runtime_checkable
class Direction(Protocol):
    """Says where a completion's rows are to be moved."""

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        """For every position from `start` on; None where the budget has no room for it."""
        ...


class GradientDirection(Settings):
    """The objective's gradient: likelihood, learned rewards, and the verdicts of tools. One gradient pass."""

    name: ClassVar[str] = "gradient"

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        if search.exhausted(GRADIENT):
            return None
        gradient = await search.gradient(entry, start, outcome_weight=outcome_weight)
        return Directed(gradient.likelihood, lambda positions, _: gradient.rows(positions), gradient.credit, True)


class RandomDirection(Settings):
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

        return Directed(gradient.likelihood, rows)


class NoDirection(Settings):
    """A control: the language model's own rows, moved nowhere. One forward, no gradient pass."""

    name: ClassVar[str] = "none"

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        likelihood = await search.states(entry, start)
        return Directed(likelihood, lambda _, considered: torch.zeros_like(considered, dtype=torch.float32))


DIRECTIONS: Final[Mapping[str, Direction]] = {
    kind.name: kind() for kind in (GradientDirection, RandomDirection, NoDirection)
}
"""By the names that the command line and files have for them."""
