"""What a strategy is: a loop over rollouts, scores and gradients that says how it goes, step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from nabla_agents.search.pool import AcceptanceRule, Pool, Scored
from nabla_agents.search.search import Search
from nabla_agents.types import FinishReason, Step


class Strategy(Protocol):
    """A search. It holds settings only; all state is in the `Search`, so one object serves many requests.

    One that never changes or discards its first completion says so by `revises = False`: then that is streamed as it is
    written. One that does not go with every model or prompt has `check(model, prompt)`, which raises why before
    anything is computed. One whose answer is where a walk stands, the newest entry of the pool, has `walks = True`.
    """

    @property
    def rule(self) -> AcceptanceRule:
        """How completions are compared."""
        ...

    def steps(self, search: Search) -> AsyncIterator[Step]:
        """Searches until nothing is left to do or the budget is spent: an async generator, which awaits the search's
        operations and nothing else.
        """
        ...

    def select(self, pool: Pool) -> Scored | None:
        """The completion to return."""
        ...


def rollout_step(search: Search, entry: Scored, *, accepted: bool) -> Step:
    """The step that reports a whole rollout."""
    return Step(
        kind="rollout",
        committed_text=entry.rollout.text if search.final else "",
        accepted=accepted,
        log_likelihood=entry.rollout.log_likelihood,
        score=entry.score,
        text=entry.rollout.text,
        usage=search.usage,
    )


def vouched(search: Search, best: Scored | None) -> bool:
    """Whether the search is at its end because a tool vouches for the best completion; then it says so."""
    if best is None or best.score is None or not best.verified:
        return False
    search.ended = (FinishReason.VERIFIED, best.score.explanation)
    return True
