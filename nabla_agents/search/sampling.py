"""The baselines without gradient: greedy decoding, best-of-n and self-consistency."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nabla_agents.config import Settings
from nabla_agents.search.base import rollout_step
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.search import Search
from nabla_agents.types import Step


class Greedy(Settings):
    """One rollout of the likeliest tokens (of the request's temperature, if it has one)."""

    revises: ClassVar[bool] = False
    rule: AcceptanceRule = "objective"

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        for entry in await search.roll([()], temperature=0.0):
            yield rollout_step(search, entry, accepted=True)

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()


class BestOfN(Settings):
    """n rollouts in one batch; the best by the acceptance rule is returned.

    The default rule compares by the reward alone, as best-of-n does everywhere; `objective` adds the likelihood. A low
    `temperature` is a baseline of its own: it sharpens each token's row, where `PowerSampling` sharpens whole answers.
    """

    n: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(ge=0)] = 0.7
    rule: AcceptanceRule = "reward"

    @property
    def revises(self) -> bool:
        return self.n > 1

    def steps(self, search: Search) -> AsyncIterator[Step]:
        return _sampled(self, search)

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()


class SelfConsistency(Settings):
    """n rollouts in one batch; the answer with most votes wins (majority), or with most reward (weighted vote)."""

    n: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(ge=0)] = 0.7
    weighting: Literal["majority", "reward"] = "majority"
    rule: AcceptanceRule = "objective"

    def steps(self, search: Search) -> AsyncIterator[Step]:
        return _sampled(self, search)

    def select(self, pool: Pool) -> Scored | None:
        return pool.vote(self.weighting)


async def _sampled(strategy: BestOfN | SelfConsistency, search: Search) -> AsyncIterator[Step]:
    if search.request.until is not None:  # whether a whole batch is needed, one rollout tells
        for entry in await search.roll([()], temperature=0.0):
            yield rollout_step(search, entry, accepted=True)
    entries = await search.roll([()] * strategy.n, temperature=strategy.temperature)
    chosen = strategy.select(search.pool)
    for entry in entries:
        yield rollout_step(search, entry, accepted=entry is chosen)
