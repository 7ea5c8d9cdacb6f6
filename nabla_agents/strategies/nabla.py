"""Nabla: the left-to-right loop of ∇-Reasoner (arXiv 2603.04948, Alg. 1): refine, propose, judge, commit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field

from nabla_agents.config import Sampling
from nabla_agents.dto import AdamDTO
from nabla_agents.positions import Refinable
from nabla_agents.strategies.base import rollout_step
from nabla_agents.strategies.proposing import Proposing
from nabla_agents.strategies.search import Search
from nabla_agents.types import Step


class Nabla(Proposing):
    """Refines one rollout from left to right: where the refined row prefers another token, the answer is completed
    anew from there, and kept only if it is better. One gradient pass per accepted change.

    openings: completions drawn before the first refinement, those after the first at `opening_temperature`; the best
        one is refined, and where several begin alike, the tools' verdicts on them say how to go on.
    """

    openings: Annotated[int, Field(ge=1)] = 1
    opening_temperature: Annotated[float, Field(ge=0)] = 0.7

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
        )

    def steps(self, search: Search) -> Iterator[Step]:
        opened = search.roll([()], temperature=self.temperature)
        if opened and self.openings > 1:
            opened += search.roll([()] * (self.openings - 1), temperature=self.opening_temperature)
        incumbent = search.pool.best()
        if incumbent is None:
            return
        for entry in opened:
            yield rollout_step(search, entry, accepted=entry is incumbent)
        committed = 0
        improved = True
        while improved and not self._verified(search, incumbent):
            improved = False
            for proposal in self._proposals(search, incumbent, committed):
                ids = incumbent.rollout.completion_ids
                found = search.roll([proposal.prefix(ids)], temperature=self.temperature, drafts=[proposal.draft(ids)])
                if not found:
                    return
                [candidate] = found
                improved = search.pool.better(candidate, incumbent)
                committed = proposal.position + 1
                yield self._step(search, incumbent, candidate, proposal, accepted=improved)
                if improved:
                    incumbent = candidate
                    break
