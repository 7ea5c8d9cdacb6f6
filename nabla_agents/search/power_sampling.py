"""PowerSampling: completions of the sharpened distribution p^α (Karan and Du, arXiv 2510.14901)."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nabla_agents.config import Count, Settings
from nabla_agents.functional import HEAD_CHUNK, filtered_logits, token_log_probs
from nabla_agents.search.base import rollout_step
from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.positions import permitted_tokens
from nabla_agents.search.search import Search
from nabla_agents.types import Step


@dataclass(frozen=True, eq=False)
class _State:
    """Where the chain stands. `log_q` [time]: of each token, as it would be proposed."""

    entry: Scored
    log_q: Float[Tensor, "time"]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.entry.rollout.completion_ids

    def log_weight(self, start: int, alpha: float) -> float:
        """log p^α(tail) - log q(tail) from a position on, over the number of positions that it was chosen from."""
        log_p = self.entry.rollout.log_probs
        assert log_p is not None  # it was rolled
        tail = alpha * log_p[start:].double().sum() - self.log_q[start:].sum()
        return float(tail) - math.log(len(self.ids))


class PowerSampling(Settings):
    """One sample of p^α, p being the language model's own distribution of completions: sharper than p, and unlike low
    temperature it weighs whole answers, not one token at a time.

    A chain starts at a completion sampled at temperature 1/α. A move chooses a position of the completion uniformly,
    samples all from there on anew, and is taken with probability min(1, [p^α(x') q(x|x')] / [p^α(x) q(x'|x)]), where q
    is the probability of the move, choice of the position included: so p^α is stationary. With several `blocks` the
    answer grows by one at a time (a part of the longest that `max_tokens` and the context allow), with `moves` after
    each, which have p^α of the text so far.

    alpha: 1 is p itself; the larger, the nearer to the likeliest completion.
    moves: of each block; fewer where the budget's rollouts would not suffice to write the other blocks.

    Likelihood alone: rewards judge the whole completions, and move nothing; the answer is where the chain stands. The
    request's own temperature, filters and grammar shape q, and what they exclude p^α lacks, too. A move costs a rollout
    from its position on, and one forward over the text.
    """

    walks: ClassVar[bool] = True
    alpha: Annotated[float, Field(gt=0)] = 4.0
    blocks: Count = 1
    moves: Annotated[int, Field(ge=0)] = 7
    rule: AcceptanceRule = "objective"

    async def steps(self, search: Search) -> AsyncIterator[Step]:
        rollouts = search.budget.rollouts
        blocks = self.blocks if rollouts is None else min(self.blocks, rollouts)
        size, state = math.ceil(search.longest() / blocks), None
        for block in range(1, blocks + 1):
            most, left = (None if block == blocks else block * size), blocks - block
            state = await self._rolled(search, state, None, most)
            if state is None:
                return
            yield rollout_step(search, state.entry, accepted=True)
            for _ in range(self.moves):
                if left and rollouts is not None and rollouts - search.usage.rollouts <= left:
                    break
                chosen, limit = search.uniforms(2).tolist()
                start = int(chosen * len(state.ids))
                moved = await self._rolled(search, state, start, most)
                if moved is None:
                    return
                log_ratio = moved.log_weight(start, self.alpha) - state.log_weight(start, self.alpha)
                taken = limit < math.exp(min(0.0, log_ratio))
                state = moved if taken else state
                search.pool.add(state.entry)
                yield rollout_step(search, moved.entry, accepted=taken)

    def select(self, pool: Pool) -> Scored | None:
        """Where the chain stands: the newest entry of the pool."""
        return pool.newest

    async def _rolled(self, search: Search, state: _State | None, start: int | None, most: int | None) -> _State | None:
        """The completion sampled anew from a position on, or, from None, gone on with; None where the budget ends."""
        ids = () if state is None else state.ids
        prefix = ids[:start]
        rolled = await search.roll([prefix], temperature=1 / self.alpha, drafts=[ids[len(prefix) :]], most=most)
        if not rolled:
            return None
        [entry] = rolled
        if state is not None:
            search.pool.add(state.entry)  # until the new one is accepted
        known = torch.zeros(0, dtype=torch.float64) if state is None else state.log_q[: len(prefix)]
        new = await self._log_q(search, entry, len(known))
        if start is None:
            search.pool.add(entry)
        return _State(entry, torch.cat([known, new]))

    async def _log_q(self, search: Search, entry: Scored, start: int) -> Float[Tensor, "time"]:
        """log q of a completion's tokens from `start` on, in nats: one forward, some vocabulary rows at a time."""
        rollout, sampling = entry.rollout, search.sampling
        if sampling.temperature is None:
            sampling = sampling.replace(temperature=1 / self.alpha)
        places = range(start, len(rollout.completion_ids))
        if sampling.temperature == 0 or not places:
            return torch.zeros(len(places), dtype=torch.float64)  # nothing is left to chance
        states = await search.states(entry, start)
        parts: list[Tensor] = []
        for chunk in (places[i : i + HEAD_CHUNK] for i in range(0, len(places), HEAD_CHUNK)):
            permitted = permitted_tokens(rollout, sampling.grammar, search.model, chunk)
            logits = states.logits(chunk)
            if permitted is not None:
                logits = torch.where(permitted.to(logits.device), logits, -torch.inf)
            tokens = torch.tensor([rollout.completion_ids[i] for i in chunk], device=logits.device)
            parts.append(token_log_probs(filtered_logits(logits, sampling), tokens).double().cpu())
        return torch.cat(parts)
