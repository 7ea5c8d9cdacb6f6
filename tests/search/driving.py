"""A search by itself: its operations are run at once, one by one, where a test asks for them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from nabla_agents import Budget, LanguageModel, Request, Reward, Sampling
from nabla_agents.objective import Objective
from nabla_agents.search.operation import Writing, Written
from nabla_agents.search.search import Search
from nabla_agents.types import Prompt

ResultT = TypeVar("ResultT")

AS_LONG_AS_IT_IS = Sampling()
UNLIMITED = Budget(rollouts=None)


def performed(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What an operation of a search returns."""
    outcome: Any = None
    while True:
        try:
            asked = coroutine.send(outcome)
        except StopIteration as e:
            return e.value
        if isinstance(asked, Writing):
            outcome = Written(asked.model.rollout(asked.jobs), [])
        else:
            outcome = asked.function(*asked.columns)


def search_of(
    model: LanguageModel,
    prompt: Prompt,
    reward: Reward | None = None,
    *,
    sampling: Sampling = AS_LONG_AS_IT_IS,
    budget: Budget = UNLIMITED,
    seed: int = 0,
) -> Search:
    request = Request(prompt=prompt, sampling=sampling, seed=seed)
    return Search(request, objective=Objective(model, reward), backend=model, budget=budget)
