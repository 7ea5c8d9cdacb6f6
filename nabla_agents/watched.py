"""Watched: one request's strategy, which reports its steps, can be stopped from outside, and may end with the draft."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nabla_agents.types import Step

if TYPE_CHECKING:
    from nabla_agents.strategies import Strategy


class Watched:
    """A strategy for one search. It works and reports in the context of whoever made it, on any thread.

    Args:
        strategy: what searches.
        report: is told each step.
        settled: whether the first completion is good enough to end the search with it; None where that is not asked.
    """

    def __init__(
        self, strategy: Strategy, *, report: Callable[[Step], object], settled: Callable[[Step], bool] | None = None
    ) -> None:
        self.strategy, self._report, self._settled = strategy, report, settled
        self._context = contextvars.copy_context()
        self._search: Any = None
        self.cancelled = False

    @property
    def rule(self) -> Any:
        return self.strategy.rule

    def select(self, pool: Any) -> Any:
        return self.strategy.select(pool)

    def cancel(self) -> None:
        """Stops the search before its next operation; from any thread, and before it has begun."""
        self.cancelled = True
        if self._search is not None:
            self._search.cancel()

    def tell(self, step: Step) -> None:
        """Reports a step that is not the strategy's own."""
        self._context.run(self._report, step)

    def steps(self, search: Any) -> Iterator[Step]:
        self._search = search
        if self.cancelled:
            search.cancel()
        return self._steps(search)

    def _steps(self, search: Any) -> Iterator[Step]:
        steps = self._context.run(self._inner, search)
        first = True
        while (step := self._context.run(next, steps, None)) is not None:
            self.tell(step)
            yield step
            if first and self._settled is not None and self._settled(step):
                return
            first = False

    def _inner(self, search: Any) -> Iterator[Step]:
        from nabla_agents.strategies import BestOfN, SelfConsistency  # loads torch, which is there by now

        if self._settled is not None and isinstance(self.strategy, BestOfN | SelfConsistency):
            # Their first step is a whole batch; whether that is needed, one rollout tells.
            for entry in search.roll([()], temperature=0.0):
                yield Step(
                    kind="rollout",
                    committed_text="",
                    accepted=True,
                    log_likelihood=entry.rollout.log_likelihood,
                    score=entry.score,
                    text=entry.rollout.text,
                    usage=search.usage,
                )
        yield from self.strategy.steps(search)
