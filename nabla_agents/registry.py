"""Parts by name: the tables through which the command line and configuration files select them. Nothing heavy is
imported before a part is made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import nabla_agents as na
from nabla_agents.errors import ConfigurationError

STRATEGIES: dict[str, Callable[[int], na.Strategy]] = {
    "nabla": lambda n: na.Nabla(),
    "nabla-none": lambda n: na.Nabla(direction=na.NoDirection()),
    "nabla-random": lambda n: na.Nabla(direction=na.RandomDirection()),
    "nabla-parallel": lambda n: na.NablaParallel(),
    "nabla-paper": lambda n: na.Nabla.paper(),
    "greedy": lambda n: na.Greedy(),
    "best-of-n": lambda n: na.BestOfN(n=n),
    "self-consistency": lambda n: na.SelfConsistency(n=n),
    "refine": lambda n: na.Refine(n=n),
    "power-sampling": lambda n: na.PowerSampling(moves=n - 1),
    "weighted-vote": lambda n: na.SelfConsistency(n=n, weighting="reward"),
}
REWARDS: dict[str, Callable[[], na.Reward]] = {
    "tiny": lambda: na.ImplicitReward.from_pretrained("tiny"),
    "arithmetic": lambda: na.ArithmeticSteps(),
    "located": lambda: na.ArithmeticSteps(suggest=False),
    "tests": lambda: na.PythonTests(na.prompt_assertions),
}
# By hub id or folder, `KIND:MODEL`; the last six are families with a format of their own.
LEARNED_REWARDS: dict[str, Callable[..., na.Reward]] = {
    "implicit": lambda name, **loading: na.ImplicitReward.from_pretrained(name, **loading),
    "sibling": lambda name, **loading: na.SiblingReward.from_pretrained(name, **loading),
    "process": lambda name, **loading: na.ProcessReward.from_pretrained(name, **loading),
    "outcome": lambda name, **loading: na.OutcomeReward.from_pretrained(name, **loading),
    "qwen-math-prm": lambda name, **o: na.ProcessReward.from_pretrained(name, format=na.QWEN_MATH_PRM, **o),
    "skywork-o1-prm": lambda name, **o: na.ProcessReward.from_pretrained(name, format=na.SKYWORK_O1_PRM, **o),
    "math-shepherd": lambda name, **o: na.ProcessReward.from_pretrained(name, format=na.MATH_SHEPHERD, **o),
    "rlhflow-prm": lambda name, **o: na.ProcessReward.from_pretrained(name, format=na.RLHFLOW_PRM, **o),
    "skywork-reward-v2": lambda name, **o: na.OutcomeReward.from_pretrained(name, format=na.SKYWORK_REWARD_V2, **o),
    "armorm": lambda name, **o: na.OutcomeReward.from_pretrained(name, format=na.ARMORM, **o),
}


def replaced(strategy: Any, changes: Mapping[str, Any]) -> Any:
    """A strategy with some of its settings changed; a direction may be given by its short name.

    Raises:
        ConfigurationError: no such setting, or no such value of it.
    """
    if isinstance(name := changes.get("direction"), str):
        from nabla_agents.search.directions import DIRECTIONS  # loads torch

        changes = {**changes, "direction": known(DIRECTIONS, name, "direction")}
    return strategy.replace(**changes)


def known(table: Mapping[str, Any], name: str, what: str) -> Any:
    """The part of that name.

    Raises:
        ConfigurationError: there is none; the message has the nearest one.
    """
    if name not in table:
        nearest = get_close_matches(name, table, 1)
        meant = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise ConfigurationError(f"Unknown {what} {name!r}{meant} known are {', '.join(table)}.")
    return table[name]


Term = tuple[float, Callable[..., "na.Reward"], tuple[str, ...]]


def own_reward(model: str) -> str:
    """The reward that goes with a model where none is named."""
    return "tiny" if model == "tiny" else "none"


def terms_of(expression: str, also: Mapping[str, Callable[[], na.Reward]] | None = None) -> list[Term]:
    """`tiny+2*arithmetic` as (weight, constructor, its arguments); `none` is no term. Nothing is loaded yet.

    `also` has further names, which go before those of `REWARDS`.
    """
    if expression.strip() == "none":
        return []
    single = {**REWARDS, **(also or {})}
    names = {**single, "none": None, **{f"{k}:MODEL": None for k in LEARNED_REWARDS}}
    terms: list[Term] = []
    for term in expression.split("+"):
        weight, star, name = term.rpartition("*")
        kind, colon, model = name.strip().partition(":")
        try:
            factor = float(weight) if star else 1.0
        except ValueError as e:
            raise ConfigurationError(f"The weight {weight.strip()!r} in the reward {expression!r} is no number.") from e
        if not math.isfinite(factor):
            raise ConfigurationError(f"The weight {weight.strip()!r} in the reward {expression!r} is not finite.")
        if colon:
            terms.append((factor, known(LEARNED_REWARDS, kind, "kind of reward model"), (model,)))
        else:
            terms.append((factor, known(names, kind, "reward") or known(single, kind, "term of a sum"), ()))
    return terms


def reward_of(terms: Sequence[Term], loading: Mapping[str, Any]) -> na.Reward | None:
    """The weighted sum of the terms, loaded; None without terms."""
    rewards = [(weight, make(*names, **(loading if names else {}))) for weight, make, names in terms]
    parts = [r if weight == 1 else weight * r for weight, r in rewards]
    return functools.reduce(lambda a, b: a + b, parts) if parts else None
