"""Which calls are refined, and what all refinements of one trace may cost together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from llama_index.llms.nabla.callers import is_open, on_trace_end
from nabla_agents import Budget, ConfigurationError, Reply, Result, Score, Step

RefinePolicy = Literal["always", "final_only", "when_verifier_present", "on_failure", "never"]


@dataclass(frozen=True)
class TraceBudget:
    """What the refined calls of one trace may cost together: one query, one agent run. None means no limit.

    Once a limit is reached, calls are answered without refinement. Calls that run at the same time may overrun
    `rollouts` and `seconds` by what they had been given.
    """

    refinements: int | None = None
    rollouts: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("refinements", "rollouts", "seconds"):
            limit = getattr(self, name)
            if limit is not None and (isinstance(limit, bool) or not limit >= 0):
                raise ConfigurationError(f"TraceBudget.{name} is {limit!r}; expected None or a number of at least 0.")


@dataclass(frozen=True)
class TraceUsage:
    """What the refined calls of a trace have cost so far."""

    refinements: int = 0
    rollouts: int = 0
    seconds: float = 0.0


_lock = threading.Lock()
_spent: dict[str, TraceUsage] = {}
on_trace_end.append(lambda trace: _spent.pop(trace, None))


def granted(trace: str | None, allowed: TraceBudget | None, budget: Budget) -> Budget | None:
    """What one more refined call of the trace may cost, counted as begun; None where nothing is left."""
    if allowed is None or trace is None:
        return budget
    with _lock:
        spent = _spent.get(trace, TraceUsage())
        left = {name: _left(getattr(allowed, name), getattr(spent, name)) for name in vars(allowed)}
        if any(amount is not None and amount <= 0 for amount in left.values()):
            return None
        if is_open(trace):  # a stream may be consumed when its query has ended: then nothing comes after it
            _spent[trace] = replace(spent, refinements=spent.refinements + 1)
    rollouts = _least(budget.rollouts, left["rollouts"])
    return replace(
        budget, rollouts=None if rollouts is None else int(rollouts), seconds=_least(budget.seconds, left["seconds"])
    )


def charge(trace: str | None, result: Result) -> None:
    """Adds a refined call's cost to its trace."""
    with _lock:
        if trace is not None and (spent := _spent.get(trace)) is not None:
            usage = result.usage
            _spent[trace] = replace(
                spent, rollouts=spent.rollouts + usage.rollouts, seconds=spent.seconds + usage.seconds
            )


def settled(policy: RefinePolicy, *, tools: bool, reply: Callable[[str], Reply]) -> Callable[[Step], bool] | None:
    """Whether the first completion is good enough to end a search with it; None where that is never asked."""
    if policy == "final_only" and tools:
        return lambda step: any(call.error is None for call in reply(step.text).tool_calls)
    if policy == "when_verifier_present":
        return lambda step: step.score is None or step.score.verdict is None
    if policy == "on_failure":
        return lambda step: not (_refuted(step.score) or any(call.error for call in reply(step.text).tool_calls))
    return None


def _refuted(score: Score | None) -> bool:
    return score is not None and (score.verified is False or any(span.value < 0 for span in score.spans))


def _left(allowed: float | None, spent: float) -> float | None:
    return None if allowed is None else allowed - spent


def _least(first: float | None, second: float | None) -> float | None:
    return min((n for n in (first, second) if n is not None), default=None)
