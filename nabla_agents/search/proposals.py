"""What searches that change tokens share: which direction a row is refined in, and which tokens are worth a rollout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field, field_serializer
from torch import Tensor

from nabla_agents.config import Sampling, Settings
from nabla_agents.functional import HEAD_CHUNK, choose_tokens, kl_divergence
from nabla_agents.search.directions import Directed, Direction, GradientDirection
from nabla_agents.search.dto import AdamDTO, MirrorDTO
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.positions import Proposal, Refinable, best_alternatives, plausible
from nabla_agents.search.search import Search
from nabla_agents.types import FinishReason, Step


class Proposing(Settings):
    """Settings of a search that proposes other tokens for a rollout's own.

    direction: where rows are moved: `GradientDirection()`; the controls are `RandomDirection()` and `NoDirection()`.
    min_promise: nats by which the refined row must prefer the new token to pay a rollout for it; below 0, tokens that
        it does not quite prefer are tried too. Unused with `resample`.
    resample: how a token is drawn from the refined row; None takes the best other token.
    acceptance: by the whole objective, or by `reward` alone (the paper's rule, prone to over-optimisation).
    plausibility_floor: nats that a proposed token may be below the written one; None is no floor. The text that a tool
        expects is exempt, and so are located verdicts from the tests of `refinable`.
    outcome_weight: nats in the gradient for each unit of advantage of a token by the tools' verdicts on the rollouts
        that went through it (`outcome_credit`). Learned scores have no part in it.
    openings: completions drawn before the first refinement, those after the first at `opening_temperature`; the best
        one is refined, and where several begin alike, the tools' verdicts on them say how to go on.
    confirm: nats by which a changed prefix (y_<t, new) must have a better objective than the written one before a
        rollout is paid for it; the reward scores all of them in one batch. A prefix that it cannot judge is confirmed.
        None asks no such question.
    reopen: while a tool objects to the best completion without saying where, and nothing promising is left, further
        openings are drawn until the budget ends. Verdicts with a place, and learned scores, open nothing.
    """

    direction: Direction = GradientDirection()
    dto: MirrorDTO | AdamDTO = MirrorDTO()
    refinable: Refinable = Refinable()
    min_promise: float = -2.0
    resample: Sampling | None = None
    temperature: Annotated[float, Field(ge=0)] = 0.0
    acceptance: AcceptanceRule = "objective"
    plausibility_floor: Annotated[float, Field(ge=0)] | None = 6.0
    outcome_weight: Annotated[float, Field(ge=0)] = 30.0
    stop_when_verified: bool = True
    confirm: float | None = None
    openings: Annotated[int, Field(ge=1)] = 1
    opening_temperature: Annotated[float, Field(ge=0)] = 0.7
    reopen: bool = True

    @field_serializer("direction")
    def _named(self, direction: Direction) -> str:
        """In files: by its short name, or what it says of itself."""
        return getattr(direction, "name", repr(direction))

    @property
    def rule(self) -> AcceptanceRule:
        return self.acceptance

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()

    def _verified(self, search: Search, incumbent: Scored) -> bool:
        if not (self.stop_when_verified and incumbent.verified):
            return False
        explanation = incumbent.score.explanation if incumbent.score else ""
        search.ended = (FinishReason.VERIFIED, explanation)
        return True

    async def _opened(self, search: Search) -> list[Scored]:
        """The first completions, the one at `temperature` first; none where the budget allows none."""
        opened = await search.roll([()], temperature=self.temperature)
        if opened and self.openings > 1:
            opened += await search.roll([()] * (self.openings - 1), temperature=self.opening_temperature)
        return opened

    async def _reopened(self, search: Search, count: int) -> list[Scored]:
        """Further openings in one batch; none where they are of no use, or the budget allows none."""
        asked, best = search.sampling.temperature, search.pool.best()
        temperature = self.opening_temperature if asked is None else asked
        if not self.reopen or temperature == 0 or best is None or not objected(best):  # at 0, the same would come again
            return []
        return await search.roll([()] * count, temperature=self.opening_temperature)

    async def _proposals(self, search: Search, incumbent: Scored, start: int) -> AsyncIterator[Proposal]:
        """The tokens worth a rollout, from left to right; the gradient is taken once."""
        ids = incumbent.rollout.completion_ids
        free = search.free(incumbent.rollout)
        if not any(p in free for p in range(start, len(ids))) or search.exhausted():
            return
        directed = await self.direction.of(search, incumbent, start, outcome_weight=self.outcome_weight)
        if directed is None:
            return
        for first in range(start, len(ids), HEAD_CHUNK):
            chunk = range(first, min(first + HEAD_CHUNK, len(ids)))
            found = self._within(chunk, search, incumbent, free, directed)
            if directed.explains and found:
                search.note(incumbent, found)
            worth = [p for p in found if self.resample is not None or p.promise > self.min_promise]
            for proposal in await self._confirmed(search, incumbent, worth):
                yield proposal

    def _within(
        self,
        chunk: range,
        search: Search,
        incumbent: Scored,
        free: Container[int],
        directed: Directed,
    ) -> list[Proposal]:
        """The best change of each refinable token in a range of positions."""
        ids, logits = incumbent.rollout.completion_ids, directed.likelihood.logits(chunk)
        passed = self.refinable.select(logits).tolist()
        chosen = [i for i, p in enumerate(chunk) if p in free and (passed[i] or p in directed.credit)]
        if not chosen:
            return []
        positions = [chunk[i] for i in chosen]
        permitted = search.permitted(incumbent.rollout, positions)
        written = [ids[p] for p in positions]
        return self._refined(search, logits[chosen], directed, positions, written, permitted)

    async def _confirmed(self, search: Search, incumbent: Scored, proposals: Sequence[Proposal]) -> Sequence[Proposal]:
        """The proposals whose prefixes are better, as far as the reward can judge unfinished text."""
        if self.confirm is None or not proposals:
            return proposals
        gains = await search.prefix_gains(incumbent, proposals)
        return [p for p, gain in zip(proposals, gains, strict=True) if gain is None or gain > self.confirm]

    def _refined(
        self,
        search: Search,
        logits: Float[Tensor, "n vocab"],
        directed: Directed,
        positions: Sequence[int],
        ids: Sequence[int],
        permitted: Bool[Tensor, "n vocab"] | None,
    ) -> list[Proposal]:
        tokens = torch.tensor(ids, device=logits.device)
        allowed = plausible(logits, tokens, self.plausibility_floor)
        for i, position in enumerate(positions):
            credit = directed.credit.get(position, {})
            allowed[i, [v for v, nats in credit.items() if nats > 0 and v != ids[i]]] = True
        if permitted is not None:
            allowed &= permitted.to(allowed.device)
        g = directed.rows(positions, allowed.scatter(-1, tokens[:, None], True)).to(logits.device)
        refined = self.dto.refine(logits, g)
        if self.resample is not None:
            drawn = choose_tokens(refined, self.resample, search.uniforms(len(positions)))
            rows = torch.arange(len(positions), device=drawn.device)
            only = torch.zeros_like(allowed)
            only[rows, drawn] = allowed[rows, drawn]
            allowed = only
        kl = dict(zip(positions, kl_divergence(refined, logits).tolist(), strict=True))
        found = best_alternatives(positions, tokens, logits, refined, g, allowed)
        return [replace(p, kl=kl[p.position]) for p in found]

    def _step(
        self, search: Search, incumbent: Scored, candidate: Scored, proposal: Proposal, *, accepted: bool
    ) -> Step:
        """What a change led to; nothing is committed."""
        tokenizer = search.model.tokenizer
        return Step(
            kind="refine",
            committed_text="",
            accepted=accepted,
            position=proposal.position,
            old_token=tokenizer.token_text(proposal.old),
            new_token=tokenizer.token_text(proposal.new),
            predicted_gain=proposal.predicted_gain,
            gain=candidate.objective - incumbent.objective,
            kl=proposal.kl,
            log_likelihood=candidate.rollout.log_likelihood,
            score=candidate.score,
            text=candidate.rollout.text,
            usage=search.usage,
            gains=search.noted(),
        )


def objected(entry: Scored) -> bool:
    """Whether a tool rejects a completion and does not say where."""
    score = entry.score
    return score is not None and score.judged and score.verified is False and not any(s.credit for s in score.spans)
