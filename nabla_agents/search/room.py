"""What a budget still has room for: completions, and their tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nabla_agents.search.pool import Scored
from nabla_agents.types import Budget, FinishReason, Rollout, Usage


def room(budget: Budget, spent: Usage, best: Scored | None, prefixes: Sequence[tuple[int, ...]]) -> int:
    """How many of these prefixes may be completed: for each, at least one token, and as many as the best completion
    goes on with from there, since one that is cut off is of no use beside it. Requires a budget not exhausted.
    """
    wanted = len(prefixes)
    if budget.rollouts is not None:
        wanted = min(wanted, budget.rollouts - spent.rollouts)
    if budget.generated_tokens is not None:
        left = budget.generated_tokens - spent.generated_tokens
        length = 0 if best is None or best.rollout.cut else len(best.rollout.completion_ids)
        tails = [max(1, length - len(prefix)) for prefix in prefixes]
        while wanted and left // wanted < max(tails[:wanted]):
            wanted -= 1
    return wanted


def share(budget: Budget, spent: Usage, batch: int) -> int:
    """How many tokens each completion of a batch may be given beyond its prefix."""
    if budget.generated_tokens is None:
        return sys.maxsize // 2
    return (budget.generated_tokens - spent.generated_tokens) // batch


def cut_short(budget: Budget, rollout: Rollout, longest: int) -> bool:
    """Whether the budget, and nothing else, ended a rollout that might have had `longest` tokens."""
    limited = budget.generated_tokens is not None and rollout.finish_reason is FinishReason.LENGTH
    written = rollout.usage.generated_tokens > 0  # no draft that came cut
    return limited and written and len(rollout.completion_ids) < longest
