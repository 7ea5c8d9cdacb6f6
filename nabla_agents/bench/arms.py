"""What is compared: an arm is a strategy with a reward. One table has the named ones, an expression changes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.models.language_model import LanguageModel
from nabla_agents.registry import STRATEGIES, replaced
from nabla_agents.search import Strategy
from nabla_agents.search.contrasts import ContrastDirection
from nabla_agents.search.direction import Direction, DirectionSum, terms_of
from nabla_agents.types import Budget


@dataclass(frozen=True)
class Arm:
    """A strategy, the name of the reward that it works with (None: the likelihood alone), and how the two weigh.

    `budget` None is that of the comparison. `varied` has the settings that a sweep gave it. `reader` names the model
    by which directions read that tell a model something; None is the language model itself.
    """

    name: str
    strategy: Strategy
    reward: str | None = None
    likelihood_weight: float = 1.0
    embedding_terms: bool = True
    budget: Budget | None = None
    varied: Mapping[str, Any] = field(default_factory=dict)
    reader: str | None = None

    def __post_init__(self) -> None:
        if self.reader is not None and not _read(self.strategy):
            raise ConfigurationError(f"Arm {self.name} has a reader, but no direction that reads, such as 'feedback'.")

    def settings(self) -> dict[str, Any]:
        """Everything that decides the arm's answers, as JSON."""
        strategy = self.strategy
        dumped = strategy.model_dump(mode="json") if isinstance(strategy, BaseModel) else repr(strategy)
        return {
            "strategy": {type(strategy).__name__: dumped},
            "reward": self.reward,
            "likelihood_weight": self.likelihood_weight,
            "embedding_terms": self.embedding_terms,
            "budget": None if self.budget is None else {k: v for k, v in asdict(self.budget).items() if v is not None},
            **({} if self.reader is None else {"reader": self.reader}),
        }


def read_by(reader: LanguageModel, strategy: Strategy) -> Strategy:
    """The strategy with another model as the reader of what its directions tell."""
    terms = [(w, d.replace(model=reader) if isinstance(d, ContrastDirection) else d) for w, d in _terms(strategy)]
    return replaced(strategy, {"direction": DirectionSum(tuple(terms))})


def _read(strategy: Strategy) -> bool:
    return any(isinstance(direction, ContrastDirection) for _, direction in _terms(strategy))


def _terms(strategy: Strategy) -> tuple[tuple[float, Direction], ...]:
    direction = getattr(strategy, "direction", None)
    return () if direction is None else terms_of(direction)


def default_arms(n: int, rewards: Sequence[str], *, bare: str = "") -> dict[str, Arm]:
    """Greedy decoding, votes, and with every reward best-of-n, both searches and their controls; `bare` names the
    reward that no name says.
    """
    arms = [_arm("greedy", n), _arm("self-consistency", n, name=f"majority@{n}")]
    for reward in rewards:
        suffix = "" if reward == bare else f"/{reward}"
        if reward == bare or not bare:
            arms.append(_arm("weighted-vote", n, reward, name=f"weighted-vote@{n}{suffix}"))
        arms += searches(n, reward, suffix)
    return {arm.name: arm for arm in arms}


def searches(n: int, reward: str, suffix: str) -> list[Arm]:
    """Best-of-n, both searches and their controls with one reward."""
    arms = [_arm("best-of-n", n, reward, name=f"best-of-{n}{suffix}")]
    for name, kind in (("nabla", "nabla"), ("parallel", "nabla-parallel")):
        search = _arm(kind, n, reward, name=name + suffix)
        controls = {f"{name}/{direction}{suffix}": {"direction": direction} for direction in ("none", "random")}
        arms += [search, *(changed(replace(search, name=control), how) for control, how in controls.items())]
    return arms


def _arm(kind: str, n: int, reward: str | None = None, *, name: str = "") -> Arm:
    return Arm(name or kind, STRATEGIES[kind](n), reward)


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
    if part in table:
        return [table[part]]
    head, bracket, inside = part.partition("[")
    names, changes = _names(head, table), dict[str, Any]()
    if not names and "@" in head:
        head, _, promise = head.rpartition("@")
        names, changes = _names(head, table), {"min_promise": _value(promise)}
    if not names or (bracket and not inside.endswith("]")):
        raise ConfigurationError(f"No arm matches {part!r}; known are {', '.join(table)}.")
    for change in inside.removesuffix("]").split(",") if bracket else ():
        name, equals, value = change.partition("=")
        if not equals:
            raise ConfigurationError(f"{change!r} in {part!r} changes nothing; expected setting=value.")
        changes[name.strip()] = _value(value.strip())
    suffix = part.removeprefix(head)
    return [changed(replace(table[name], name=name + suffix), changes) for name in names]


def _names(pattern: str, table: Mapping[str, Arm]) -> list[str]:
    return [name for name in table if fnmatchcase(name, pattern)]


def changed(arm: Arm, changes: Mapping[str, Any]) -> Arm:
    """The arm with settings changed: `likelihood_weight`, `embedding_terms`, or the strategy's by dotted path.

    Raises:
        ConfigurationError: no such setting, or no such value of it.
    """
    for name, value in changes.items():
        if name == "embedding_terms" and isinstance(value, bool):
            arm = replace(arm, embedding_terms=value)
        elif name == "likelihood_weight" and isinstance(value, int | float) and not isinstance(value, bool):
            arm = replace(arm, likelihood_weight=float(value))
        elif name in ("embedding_terms", "likelihood_weight"):
            raise ConfigurationError(f"{arm.name}: {name} is {value!r}; expected true or false, or a number.")
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
    return replaced(settings, {first: value})


def _value(text: str) -> Any:
    """JSON where it is some, else the text itself: `0.3`, `true`, `null`, `reward`."""
    try:
        return json.loads(text)
    except ValueError:
        return text
