"""NablaParallel: the gradient proposes over the whole rollout, and a batch of forward passes disposes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from nabla_agents.search.base import rollout_step
from nabla_agents.search.pool import Scored
from nabla_agents.search.positions import Proposal
from nabla_agents.search.proposals import ProposalSettings, opened, proposals, refine_step, reopened, verified
from nabla_agents.search.search import Search
from nabla_agents.types import Step

Rank = Literal["promise", "ranking_score", "loss", "random"]


class NablaParallel(ProposalSettings):
    """Ranks changes over the whole rollout, rolls out the best `width` of them in one batch and scores them in one
    batch; the best improvement becomes the incumbent, and so on. One gradient pass per accepted change.

    Where no change of a batch is an improvement, the next `width` are tried, until nothing promising is left.

    alternatives: tokens that are proposed at each place.
    rank: which changes are tried first: those of most `promise` or `ranking_score`, or those at the places where the
        direction takes most from the written token (`loss`: what TTEL does with a contrast, arXiv 2607.21453). The
        control is `random`.
    """

    width: Annotated[int, Field(ge=1)] = 4
    alternatives: Annotated[int, Field(ge=1)] = 1
    rank: Rank = "promise"

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        tried: set[tuple[int, ...]] = set()
        openings = await opened(search, self)
        while openings and (incumbent := search.pool.best()) is not None:
            for entry in openings:
                yield rollout_step(search, entry, accepted=entry is incumbent)
            async for step in self._refinements(search, incumbent, tried):
                yield step
            openings = await reopened(search, self, self.width)

    async def _refinements(self, search: Search, incumbent: Scored, tried: set[tuple[int, ...]]) -> AsyncIterator[Step]:
        """Batch after batch, until a tool vouches or nothing promising is left. Any token may still change."""
        improved: Scored | None = incumbent
        while improved is not None and not verified(search, self, incumbent):
            improved = None
            async for batch in self._batches(search, incumbent, tried):
                candidates = await self._rolled(search, incumbent, batch)
                best = max((c for c, _ in candidates), key=lambda c: c.rank(self.rule), default=None)
                improved = best if best is not None and search.pool.better(best, incumbent) else None
                for candidate, proposal in candidates:
                    yield refine_step(search, incumbent, candidate, proposal, accepted=candidate is improved)
                if improved is not None:
                    incumbent = improved
                    break
                if len(candidates) < len(batch):
                    return

    async def _batches(
        self, search: Search, incumbent: Scored, tried: set[tuple[int, ...]]
    ) -> AsyncIterator[list[Proposal]]:
        """The changes not tried yet, most promising first, `width` at a time."""
        ids = incumbent.rollout.completion_ids
        changes = [p async for p in proposals(search, self, incumbent, 0, alternatives=self.alternatives)]
        drawn = self.rank == "random"
        keys = (-search.uniforms(len(changes))).tolist() if drawn else [getattr(p, self.rank) for p in changes]
        ranked = sorted(zip(keys, changes, strict=True), key=lambda pair: pair[0], reverse=True)
        fresh = [p for _, p in ranked if p.prefix(ids) not in tried]
        for first in range(0, len(fresh), self.width):
            batch = fresh[first : first + self.width]
            tried.update(p.prefix(ids) for p in batch)
            yield batch

    async def _rolled(
        self, search: Search, incumbent: Scored, batch: Sequence[Proposal]
    ) -> list[tuple[Scored, Proposal]]:
        """Each change completed and scored; fewer than asked where the budget ends."""
        ids = incumbent.rollout.completion_ids
        rolled = await search.roll(
            [p.prefix(ids) for p in batch], temperature=self.temperature, drafts=[p.draft(ids) for p in batch]
        )
        return list(zip(rolled, batch, strict=False))
