"""What is compared: an arm is a strategy with a reward. One table has the named ones, an expression changes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.strategies import BestOfN, Greedy, Nabla, NablaParallel, SelfConsistency, Strategy


@dataclass(frozen=True)
class Arm:
    """A strategy, the name of the reward that it works with (None: the likelihood alone), and how the two weigh."""

    name: str
    strategy: Strategy
    reward: str | None = None
    likelihood_weight: float = 1.0
    embedding_terms: bool = True

    def settings(self) -> dict[str, Any]:
        """Everything that decides the arm's answers, as JSON."""
        strategy = self.strategy
        dumped = strategy.model_dump(mode="json") if isinstance(strategy, BaseModel) else repr(strategy)
        return {
            "strategy": {type(strategy).__name__: dumped},
            "reward": self.reward,
            "likelihood_weight": self.likelihood_weight,
            "embedding_terms": self.embedding_terms,
        }


def word_arms(rollouts: int = 8) -> dict[str, Arm]:
    """The arms for word problems. Greedy decoding and the plain majority need no reward and pay for none."""
    n = rollouts
    table = [Arm("greedy", Greedy()), Arm(f"majority@{n}", SelfConsistency(n=n))]
    table += [Arm(f"weighted-vote@{n}", SelfConsistency(n=n, weighting="reward"), "process")]
    for reward in ("process", "arithmetic", "both"):
        table += _searches(n, reward, "" if reward == "process" else f"/{reward}")
    table.append(Arm("nabla/located", Nabla(), "located"))
    table.insert(7, Arm("nabla-paper", Nabla.paper(), "process"))
    return {arm.name: arm for arm in table}


def code_arms(rollouts: int = 8) -> dict[str, Arm]:
    """The arms for code tasks: every search has the unit tests that the question shows, and no learned reward."""
    return {arm.name: arm for arm in [Arm("greedy", Greedy()), *_searches(rollouts, "tests", "/tests")]}


def _searches(n: int, reward: str, suffix: str) -> list[Arm]:
    return [
        Arm(f"best-of-{n}{suffix}", BestOfN(n=n), reward),
        Arm(f"nabla{suffix}", Nabla(), reward),
        Arm(f"nabla/none{suffix}", Nabla(direction="none"), reward),
        Arm(f"nabla/random{suffix}", Nabla(direction="random"), reward),
        Arm(f"parallel{suffix}", NablaParallel(), reward),
        Arm(f"parallel/none{suffix}", NablaParallel(direction="none"), reward),
        Arm(f"parallel/random{suffix}", NablaParallel(direction="random"), reward),
    ]


def choose(expression: str, table: Mapping[str, Arm]) -> list[Arm]:
    """The arms that a comma list of names or globs names, each once, with their changes.

    `ARM@X` sets min_promise to X, `ARM[a=1,b.c=2]` any setting of the strategy, likelihood_weight or embedding_terms.

    Raises:
        ConfigurationError: no arm of that name, or no such setting.
    """
    chosen: dict[str, Arm] = {}
    for part in re.split(r",(?![^\[]*\])", expression):
        for arm in _matching(part.strip(), table):
            chosen.setdefault(arm.name, arm)
    return list(chosen.values())


def _matching(part: str, table: Mapping[str, Arm]) -> list[Arm]:
    head, bracket, inside = part.partition("[")
    names, changes = _names(head, table), []
    if not names and "@" in head:
        head, _, promise = head.rpartition("@")
        names, changes = _names(head, table), [("min_promise", promise)]
    if not names or (bracket and not inside.endswith("]")):
        raise ConfigurationError(f"No arm matches {part!r}; known are {', '.join(table)}.")
    for change in inside.removesuffix("]").split(",") if bracket else ():
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigurationError(f"{change!r} in {part!r} changes nothing; expected setting=value.")
        changes.append((name.strip(), value.strip()))
    suffix = part.removeprefix(head)
    return [_changed(replace(table[name], name=name + suffix), changes) for name in names]


def _names(pattern: str, table: Mapping[str, Arm]) -> list[str]:
    return [name for name in table if fnmatchcase(name, pattern)]


def _changed(arm: Arm, changes: Sequence[tuple[str, str]]) -> Arm:
    for name, text in changes:
        value = _value(text)
        if name == "embedding_terms" and isinstance(value, bool):
            arm = replace(arm, embedding_terms=value)
        elif name == "likelihood_weight" and isinstance(value, int | float):
            arm = replace(arm, likelihood_weight=float(value))
        elif name in ("embedding_terms", "likelihood_weight"):
            raise ConfigurationError(f"{arm.name}: {name} is {text!r}; expected true or false, or a number.")
        else:
            arm = replace(arm, strategy=_with(arm.strategy, name.split("."), value, arm.name))
    return arm


def _with(settings: Any, path: Sequence[str], value: Any, arm: str) -> Any:
    """The settings with the one at the end of a path changed."""
    first, *rest = path
    if not isinstance(settings, Settings):
        raise ConfigurationError(f"{arm}: {first!r} is no setting of {settings!r}.")
    if rest:
        if first not in type(settings).model_fields:
            raise ConfigurationError(f"{arm}: {type(settings).__name__} has no setting {first!r}.")
        value = _with(getattr(settings, first), rest, value, arm)
    return settings.replace(**{first: value})


def _value(text: str) -> Any:
    """JSON where it is some, else the text itself: `0.3`, `true`, `null`, `reward`."""
    try:
        return json.loads(text)
    except ValueError:
        return text
