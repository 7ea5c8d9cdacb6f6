"""Direction: where a search would move each row of a completion. Directions add, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nabla_agents.errors import ConfigurationError
from nabla_agents.models.gradients import LikelihoodRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.search.pool import Scored
from nabla_agents.search.search import Search

Rows = Callable[[Sequence[int], Bool[Tensor, "n vocab"]], Float[Tensor, "n vocab"]]


@dataclass(frozen=True, eq=False)
class Directed:
    """Where one completion's rows are to be moved, on demand.

    Args:
        rows: g_t in nats for some positions, given the tokens that are considered at each.
        likelihood: the language model's own rows, where they came along; else the search reads them.
        credit: {position: {token: nats}} that tools locate: exempt from the tests of what is plausible and refinable.
        explains: whether ranking scores say something of the written tokens, so that they are shown.
        threshold: nats that a change has to gain by the rows to be worth a rollout; located ones are exempt.
    """

    rows: Rows
    likelihood: LikelihoodRows | None = None
    credit: Mapping[int, Mapping[int, float]] = field(default_factory=dict[int, Mapping[int, float]])
    explains: bool = False
    threshold: float = -math.inf


@runtime_checkable
class Direction(Protocol):
    """Says where a completion's rows are to be moved."""

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        """For every position from `start` on; None where there is nothing to say, or the budget has no room for it.

        Where a search's direction has nothing to say, that of its objective is taken.
        """
        ...


class Addable:
    """Directions add and scale as rewards do: `GradientDirection() + 2.0 * FeedbackDirection()`."""

    def __add__(self, other: Direction) -> DirectionSum:
        return DirectionSum((*terms_of(self), *terms_of(other)))

    def __radd__(self, other: Direction) -> DirectionSum:
        return DirectionSum((*terms_of(other), *terms_of(self)))

    def __mul__(self, weight: float) -> DirectionSum:
        if not isinstance(weight, Real) or isinstance(weight, bool):
            raise ConfigurationError(f"Directions add and scale by finite numbers; got {weight!r} * {self!r}.")
        return DirectionSum(tuple((float(weight) * w, direction) for w, direction in terms_of(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class DirectionSum(Addable):
    """Σ weight · direction, over those that have something to say. The largest threshold among them holds for the sum;
    what tools locate stays as it is.
    """

    terms: tuple[tuple[float, Direction], ...]

    def __post_init__(self) -> None:
        for weight, direction in self.terms:
            if not isinstance(direction, Direction) or not math.isfinite(weight):
                raise ConfigurationError(f"Directions add and scale by finite numbers; got {weight!r} * {direction!r}.")

    @property
    def name(self) -> str:
        return "+".join(f"{'' if w == 1 else f'{w:g}*'}{name_of(direction)}" for w, direction in self.terms)

    def check(self, model: LanguageModel) -> None:
        for _, direction in self.terms:
            check_direction(direction, model)

    async def of(self, search: Search, entry: Scored, start: int, *, outcome_weight: float) -> Directed | None:
        parts: list[tuple[float, Directed]] = []
        for weight, direction in self.terms:
            directed = await direction.of(search, entry, start, outcome_weight=outcome_weight)
            if directed is not None and weight != 0:
                parts.append((weight, directed))
        return _summed(parts) if parts else None


def name_of(direction: Direction) -> str:
    """Its short name, or what it says of itself."""
    return str(getattr(direction, "name", repr(direction)))


def check_direction(direction: Direction, model: LanguageModel) -> None:
    """Asks a direction that can tell whether it fits a language model.

    Raises:
        VocabularyMismatchError: it reads other tokens.
    """
    if (check := getattr(direction, "check", None)) is not None:
        check(model)


def _summed(parts: Sequence[tuple[float, Directed]]) -> Directed:
    def rows(positions: Sequence[int], considered: Bool[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        rows = [weight * part.rows(positions, considered) for weight, part in parts]
        return torch.stack([r.to(rows[0]) for r in rows]).sum(0)

    return Directed(
        rows,
        next((part.likelihood for _, part in parts if part.likelihood is not None), None),
        {position: row for weight, part in parts if weight > 0 for position, row in part.credit.items()},
        any(part.explains for _, part in parts),
        max(part.threshold for _, part in parts),
    )


def terms_of(direction: object) -> tuple[tuple[float, Direction], ...]:
    """The terms of a sum; of another direction, itself."""
    return direction.terms if isinstance(direction, DirectionSum) else ((1.0, direction),)  # type: ignore[return-value]
