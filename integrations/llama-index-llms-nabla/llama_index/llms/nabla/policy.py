"""Which calls are refined, and what all refinements of one trace may cost together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from llama_index.llms.nabla.callers import is_open, on_trace_end
from nabla_agents import Budget, ConfigurationError, Reply, Result, Score, Step

if TYPE_CHECKING:
    from llama_index.llms.nabla.base import NablaLLM
    from nabla_agents import Engine

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


@dataclass(frozen=True)
class Grant:
    """What one call may do. `because` says why it is not refined."""

    strategy: Any
    budget: Budget
    because: str | None = None

    @property
    def refined(self) -> bool:
        return self.because is None


_lock = threading.Lock()
_spent: dict[str, TraceUsage] = {}
on_trace_end.append(lambda trace: _spent.pop(trace, None))


def grant(llm: NablaLLM, engine: Engine, *, trace: str | None, final: bool) -> Grant:
    """What the policy and the trace's budget give a call; one that is refined is counted as begun."""
    budget = llm.budget_on(engine)
    if llm.refine_policy == "never":
        because = "refine_policy is never"
    elif llm.refine_policy == "final_only" and not final:
        because = "no final answer"
    elif (left := _left(trace, llm.trace_budget, budget)) is not None:
        return Grant(engine.strategy if llm.strategy is None else llm.strategy, left)
    else:
        because = "the trace's budget is spent"
    from nabla_agents import Greedy  # loads torch, which a model that is only constructed does not need

    once = Budget(rollouts=1, generated_tokens=budget.generated_tokens, seconds=budget.seconds)
    return Grant(Greedy(), once, because)


def _left(trace: str | None, allowed: TraceBudget | None, budget: Budget) -> Budget | None:
    """What one more refined call of the trace may cost; None where nothing is left."""
    if allowed is None or trace is None:
        return budget
    with _lock:
        spent = _spent.get(trace, TraceUsage())
        left = {name: limit - getattr(spent, name) for name, limit in vars(allowed).items() if limit is not None}
        if any(amount <= 0 for amount in left.values()):
            return None
        if is_open(trace):  # a stream may be consumed when its query has ended: then nothing comes after it
            _spent[trace] = replace(spent, refinements=spent.refinements + 1)
    rollouts, seconds = _least(budget.rollouts, left.get("rollouts")), _least(budget.seconds, left.get("seconds"))
    return replace(budget, rollouts=None if rollouts is None else int(rollouts), seconds=seconds)


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


def _least(first: float | None, second: float | None) -> float | None:
    return min((n for n in (first, second) if n is not None), default=None)
