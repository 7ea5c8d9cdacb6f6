"""Nabla: the left-to-right loop of ∇-Reasoner (arXiv 2603.04948, Alg. 1): refine, propose, judge, commit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Self

from nabla_agents.config import Sampling
from nabla_agents.search.base import rollout_step
from nabla_agents.search.dto import AdamDTO
from nabla_agents.search.pool import Scored
from nabla_agents.search.positions import Refinable
from nabla_agents.search.proposals import (
    ProposalSettings,
    objected,
    opened,
    proposals,
    refine_step,
    reopened,
    verified,
)
from nabla_agents.search.search import Search
from nabla_agents.types import Step


class Nabla(ProposalSettings):
    """Refines one rollout from left to right: where the refined row prefers another token, the answer is completed
    anew from there, and kept only if it is better. One gradient pass per accepted change.

    Nothing is committed while a tool objects without saying where, and what is committed is not opened again.
    """

    @classmethod
    def paper(cls) -> Self:
        """The published settings: AdamDTO, entropy > 0.25 nats, sampled tokens, acceptance by the reward alone.

        Without its test of the gradient's norm, which the term log π swamps.
        """
        return cls(
            dto=AdamDTO(),
            refinable=Refinable(min_entropy=0.25, max_probability=0.97),
            resample=Sampling(temperature=0.5, top_p=0.95),
            temperature=0.7,
            acceptance="reward",
            plausibility_floor=None,
            outcome_weight=0.0,
            stop_when_verified=False,
            reopen=False,
        )

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        tried: set[tuple[int, ...]] = set()
        openings, committed = await opened(search, self), False
        while openings and (incumbent := search.pool.best()) is not None:
            for entry in openings:
                yield rollout_step(search, entry, accepted=entry is incumbent)
            async for step in self._refinements(search, incumbent, tried):
                committed = committed or step.committed_text != ""
                yield step
            openings = [] if committed else await reopened(search, self, 1)

    async def _refinements(self, search: Search, incumbent: Scored, tried: set[tuple[int, ...]]) -> AsyncIterator[Step]:
        """Once from left to right, until a tool vouches or nothing promising is left."""
        committed, committed_text, improved = 0, "", True
        while improved and not verified(search, self, incumbent):
            improved = False
            ids = incumbent.rollout.completion_ids
            async for proposal in proposals(search, self, incumbent, committed):
                prefix = proposal.prefix(ids)
                if prefix in tried:
                    continue
                tried.add(prefix)
                rolled = await search.roll([prefix], temperature=self.temperature, drafts=[proposal.draft(ids)])
                if not rolled:
                    return
                [candidate] = rolled
                improved = search.pool.better(candidate, incumbent)
                committed, kept = proposal.position + 1, candidate if improved else incumbent
                if not objected(kept):
                    committed_text = search.committed_text(kept.rollout, committed)
                step = refine_step(search, incumbent, candidate, proposal, accepted=improved)
                yield replace(step, committed_text=committed_text)
                if improved:
                    incumbent = candidate
                    break
