"""What searches that change tokens share: which direction a row is refined in, and which tokens are worth a rollout."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, field_serializer
from torch import Tensor

from nabla_agents.config import Sampling, Settings
from nabla_agents.functional import HEAD_CHUNK, choose_tokens, kl_divergence
from nabla_agents.models.gradients import LikelihoodRows
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.search.base import vouched
from nabla_agents.search.direction import Directed, Direction, check_direction, name_of
from nabla_agents.search.directions import GradientDirection
from nabla_agents.search.dto import AdamDTO, MirrorDTO
from nabla_agents.search.operation import Pause
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.positions import (
    Proposal,
    Refinable,
    best_alternatives,
    free_positions,
    permitted_tokens,
    plausible,
)
from nabla_agents.search.search import Search
from nabla_agents.types import Prompt, Rollout, Step, Usage


class ProposalSettings(Settings):
    """What searches have in common that propose other tokens for a rollout's own.

    direction: where rows are moved: `GradientDirection()`, `FeedbackDirection()`, `PeerDirection()` or a weighted sum
        of them; the controls are `RandomDirection()` and `NoDirection()`.
    min_promise: nats by which the refined row must prefer the new token to pay a rollout for it; below 0, tokens that
        it does not quite prefer are tried too. Unused with `resample`.
    resample: how a token is drawn from the refined row; None takes the best other token.
    acceptance: by the whole objective, or by `reward` alone (the paper's rule, prone to over-optimisation).
    plausibility_floor: nats that a proposed token may be below the written one; None is no floor. The text that a tool
        expects is exempt, and so are located verdicts from the tests of `refinable`.
    outcome_weight: nats in the gradient for each unit of advantage of a token by the tools' verdicts on the rollouts
        that went through it (`outcome_credit`). Learned scores have no part in it.
    openings: completions drawn before the first refinement, those after the first at `opening_temperature`; the best
        one is refined, and where several begin alike, the tools' verdicts on them say how to go on. Where a tool
        vouches for the first, no others are drawn.
    confirm: nats by which a changed prefix (y_<t, new) must have a better objective than the written one before a
        rollout is paid for it; the reward scores all of them in one batch. A prefix that it cannot judge is confirmed.
        None asks no such question.
    reopen: while a tool objects to the best completion without saying where, and nothing promising is left, further
        openings are drawn until the budget ends. Verdicts with a place, and learned scores, open nothing. So it is
        while the best was cut with room for more: a draft that came so, or a text that repeated itself.
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
        return name_of(direction)

    @property
    def rule(self) -> AcceptanceRule:
        return self.acceptance

    def check(self, model: LanguageModel, prompt: Prompt) -> None:
        """Raises VocabularyMismatchError where the direction reads other tokens than the language model."""
        check_direction(self.direction, model)

    def select(self, pool: Pool) -> Scored | None:
        return pool.best()


async def opened(search: Search, settings: ProposalSettings) -> list[Scored]:
    """The first completions, one at `temperature` first, which may be all; none where the budget allows none."""
    entries = await search.roll([()], temperature=settings.temperature)
    if entries and settings.openings > 1 and not verified(search, settings, entries[0]):
        entries += await search.roll([()] * (settings.openings - 1), temperature=settings.opening_temperature)
    return entries


async def reopened(search: Search, settings: ProposalSettings, count: int) -> list[Scored]:
    """Further openings in one batch; none where they are of no use, or the budget allows none."""
    requested, best = search.sampling.temperature, search.pool.best()
    temperature = settings.opening_temperature if requested is None else requested
    if not settings.reopen or temperature == 0 or best is None:  # at 0, the same would come again
        return []
    cut = best.rollout.cut and len(best.rollout.completion_ids) < search.longest()
    if not cut and not objected(best):
        return []
    return await search.roll([()] * count, temperature=settings.opening_temperature)


def verified(search: Search, settings: ProposalSettings, incumbent: Scored) -> bool:
    """Whether the search is at its end because a tool vouches for the best completion."""
    return settings.stop_when_verified and vouched(search, incumbent)


async def proposals(
    search: Search, settings: ProposalSettings, incumbent: Scored, start: int, *, alternatives: int = 1
) -> AsyncIterator[Proposal]:
    """The changes worth a rollout, from left to right, `alternatives` at a place; the direction is taken once."""
    rollout = incumbent.rollout
    free = free_positions(rollout, search.sampling.grammar, search.model.tokenizer)
    if not any(p in free for p in range(start, len(rollout.completion_ids))) or search.exhausted():
        return
    directed = await _directed(search, settings, incumbent, start)
    if directed is None:
        return
    likelihood = directed.likelihood or await search.states(incumbent, start)
    for first in range(start, len(rollout.completion_ids), HEAD_CHUNK):
        if first > start:
            await Pause()
            if search.overdrawn(Usage):
                return
        chunk = range(first, min(first + HEAD_CHUNK, len(rollout.completion_ids)))
        places = [p for p in chunk if p in free]
        changes = best_changes(search, settings, rollout, places, directed, likelihood, alternatives=alternatives)
        if directed.explains and changes:
            search.note(incumbent, changes)
        worth = [p for p in changes if _is_worth(p, settings, directed)]
        for proposal in await _confirmed(search, settings, incumbent, worth):
            yield proposal


async def _directed(search: Search, settings: ProposalSettings, incumbent: Scored, start: int) -> Directed | None:
    """The search's direction, and that of the objective where it has nothing to say."""
    weight = settings.outcome_weight
    directed = await settings.direction.of(search, incumbent, start, outcome_weight=weight)
    return directed or await GradientDirection().of(search, incumbent, start, outcome_weight=weight)


def _is_worth(proposal: Proposal, settings: ProposalSettings, directed: Directed) -> bool:
    """Whether to pay a rollout for a change."""
    strong = proposal.ranking_score > directed.threshold or proposal.position in directed.credit
    return strong and (settings.resample is not None or proposal.promise > settings.min_promise)


def best_changes(
    search: Search,
    settings: ProposalSettings,
    rollout: Rollout,
    positions: Sequence[int],
    directed: Directed,
    likelihood: LikelihoodRows,
    *,
    alternatives: int,
) -> list[Proposal]:
    """The best changes of each token among these positions that is refinable, or that a tool locates."""
    if not positions:
        return []
    logits = likelihood.logits(positions)
    passed = settings.refinable.select(logits).tolist()
    chosen = [i for i, p in enumerate(positions) if passed[i] or p in directed.credit]
    if not chosen:
        return []
    logits, positions = logits[chosen], [positions[i] for i in chosen]
    written = torch.tensor([rollout.completion_ids[p] for p in positions], device=logits.device)
    allowed = plausible(logits, written, settings.plausibility_floor)
    for row, position in enumerate(positions):
        credit = directed.credit.get(position, {})
        allowed[row, [v for v, nats in credit.items() if nats > 0]] = True
    allowed.scatter_(-1, written[:, None], False)
    permitted = permitted_tokens(rollout, search.sampling.grammar, search.model, positions)
    if permitted is not None:
        allowed &= permitted.to(allowed.device)
    g = directed.rows(positions, allowed.scatter(-1, written[:, None], True)).to(logits.device)
    refined = _refined(search, settings.dto, logits, g)
    if settings.resample is not None:
        drawn = choose_tokens(refined, settings.resample, search.uniforms(len(positions)))
        allowed &= torch.zeros_like(allowed).scatter(-1, drawn[:, None], True)
    kl = dict(zip(positions, kl_divergence(refined, logits).tolist(), strict=True))
    best = best_alternatives(positions, written, logits, refined, g, allowed, count=alternatives)
    return [replace(p, kl=kl[p.position]) for p in best]


def _refined(
    search: Search, dto: MirrorDTO | AdamDTO, logits: Float[Tensor, "n vocab"], g: Float[Tensor, "n vocab"]
) -> Float[Tensor, "n vocab"]:
    """The rows refined; as far as they are when the search has to end."""
    if not isinstance(dto, AdamDTO):
        return dto.refine(logits, g)
    refined = logits
    for moved in dto.refinements(logits, g):
        refined = moved
        if search.overdrawn(Usage):
            break
    return refined


async def _confirmed(
    search: Search, settings: ProposalSettings, incumbent: Scored, changes: Sequence[Proposal]
) -> Sequence[Proposal]:
    """The changes whose prefixes are better, as far as the reward can judge unfinished text."""
    if settings.confirm is None or not changes:
        return changes
    gains = await search.prefix_gains(incumbent, changes)
    return [p for p, gain in zip(changes, gains, strict=True) if gain is None or gain > settings.confirm]


def refine_step(search: Search, incumbent: Scored, candidate: Scored, proposal: Proposal, *, accepted: bool) -> Step:
    """What a change led to; nothing is committed."""
    tokenizer = search.model.tokenizer
    return Step(
        kind="refine",
        committed_text="",
        accepted=accepted,
        position=proposal.position,
        old_token=tokenizer.token_text(proposal.old),
        new_token=tokenizer.token_text(proposal.new),
        ranking_score=proposal.ranking_score,
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
