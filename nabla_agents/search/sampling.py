"""The baselines without gradient: greedy decoding, best-of-n and self-consistency."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nabla_agents.config import Settings
from nabla_agents.search.base import rollout_step, vouched
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
    """n rollouts; the best by the acceptance rule is returned.

    The default rule compares by the reward alone, as best-of-n does everywhere; `objective` adds the likelihood. A low
    `temperature` is a baseline of its own: it sharpens each token's row, where `PowerSampling` sharpens whole answers.

    width: rollouts that are drawn at once; None is all of them. With fewer, no more are drawn when a tool vouches for
        the best: a verdict that can be trusted saves the rest.
    """

    n: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(ge=0)] = 0.7
    width: Annotated[int, Field(ge=1)] | None = None
    rule: AcceptanceRule = "reward"

    @property
    def revises(self) -> bool:
        return self.n > 1

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        async for step in _probed(search):
            yield step
        width = self.width or self.n
        for first in range(0, self.n, width):
            entries = await search.roll([()] * min(width, self.n - first), temperature=self.temperature)
            best = search.pool.best()
            for entry in entries:
                yield rollout_step(search, entry, accepted=entry is best)
            if not entries or (width < self.n and vouched(search, best)):
                return

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()


class SelfConsistency(Settings):
    """n rollouts in one batch; the answer with most votes wins (majority), or with most reward (weighted vote)."""

    n: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(ge=0)] = 0.7
    weighting: Literal["majority", "reward"] = "majority"
    rule: AcceptanceRule = "objective"

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        async for step in _probed(search):
            yield step
        entries = await search.roll([()] * self.n, temperature=self.temperature)
        chosen = self.select(search.pool)
        for entry in entries:
            yield rollout_step(search, entry, accepted=entry is chosen)

    def select(self, pool: Pool) -> Scored | None:
        return pool.vote(self.weighting)


async def _probed(search: Search) -> AsyncIterator[Step]:
    """Whether a whole batch is needed, one rollout tells."""
    if search.request.until is not None:
        for entry in await search.roll([()], temperature=0.0):
            yield rollout_step(search, entry, accepted=True)
