"""What a comparison holds equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, field_validator

from nabla_agents.config import Settings
from nabla_agents.types import Budget

Seed = Annotated[int, Field(ge=0)]


class BenchSettings(Settings):
    """How much is measured, and within which budgets.

    problems: questions for each seed, at most; a file may have fewer.
    seeds: of the problems, where the task draws them, and of the sampling.
    budgets: what one question may cost: a number of rollouts, or `{rollouts = 8, flops = 1e10}` with the names of
        `Budget`. Every strategy is measured at each of them.
    batch: questions that run together. workers: processes. Neither changes an answer, only the clock.
    """

    problems: Annotated[int, Field(ge=1)] = 300
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = (Budget(),)
    max_tokens: Annotated[int, Field(ge=1)] = 192
    batch: Annotated[int, Field(ge=1)] = 64
    workers: Annotated[int, Field(ge=1)] = 1

    @property
    def budget(self) -> Budget:
        """Of an arm that has none of its own."""
        return self.budgets[0]

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed occurs twice")
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _budgets(cls, value: Any) -> Any:
        many = value if isinstance(value, list | tuple) else (value,)
        return tuple(_budget(each) for each in many)


def budget_name(budget: Budget) -> str:
    """As it stands in the name of an arm: `8`, or `rollouts=8,flops=1e+10`."""
    limits = {f.name: getattr(budget, f.name) for f in fields(budget) if getattr(budget, f.name) is not None}
    return f"{budget.rollouts}" if set(limits) == {"rollouts"} else ",".join(f"{k}={v:g}" for k, v in limits.items())


def _budget(given: Any) -> Any:
    if isinstance(given, Mapping):
        known = [f.name for f in fields(Budget)]
        for name in given:
            if name not in known:
                nearest = get_close_matches(name, known, 1)
                meant = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
                raise ValueError(f"a budget has no {name!r}; {meant}")
        return Budget(**given)
    return Budget(rollouts=given) if isinstance(given, int) else given
