"""RemoteStrategy: a search by the name that a server has for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nabla_agents.errors import ConfigurationError
from nabla_agents.types import Score, Step

if TYPE_CHECKING:
    from nabla_agents.remote.run import RemoteSearch

# By class name, so that a client needs no torch. A server that offers other strategies has them by their names.
_NAMES: Final = {
    "Nabla": "nabla",
    "NablaParallel": "nabla-parallel",
    "Greedy": "greedy",
    "BestOfN": "best-of-n",
    "SelfConsistency": "self-consistency",
}


@dataclass(frozen=True)
class RemoteStrategy:
    """The server's strategy of this name, with some of its settings changed; None is the one it has for itself.

    What wraps a strategy, to watch its steps or to end it, may wrap this one.
    """

    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rule: str = "objective"

    @staticmethod
    def of(strategy: Any) -> Any:
        """The remote strategy that a local one, such as `BestOfN(n=4)`, stands for; others are left as they are.

        Raises:
            ConfigurationError: it has settings that are objects, which are not sent.
        """
        kind = type(strategy)
        if strategy is None:
            return RemoteStrategy()
        if kind.__name__ not in _NAMES or not kind.__module__.startswith("nabla_agents.strategies"):
            return strategy
        fields = kind.model_fields
        changed = {name: value for name, value in strategy if value != fields[name].get_default()}
        for name, value in changed.items():
            if not isinstance(value, str | int | float | None):
                raise ConfigurationError(
                    f"{kind.__name__}.{name} is {value!r}, which is not sent to a server. Have the server offer this "
                    "strategy under a name, and ask for RemoteStrategy(name)."
                )
        return RemoteStrategy(_NAMES[kind.__name__], changed)

    @property
    def wire(self) -> Any:
        """As the server takes it."""
        return self.name if not self.settings else {"name": self.name, **self.settings}

    def steps(self, search: RemoteSearch) -> Iterator[Step]:
        return search.ask(self)

    def select(self, pool: RemotePool) -> RemoteScored | None:
        return pool.best()


@dataclass(frozen=True)
class RemoteScored:
    """The best completion so far, as far as the steps tell of it."""

    text: str
    score: Score | None
    log_likelihood: float


class RemotePool:
    """What the steps have told of completions; the last one accepted is the best."""

    def __init__(self) -> None:
        self._best: RemoteScored | None = None

    def add(self, step: Step) -> None:
        if step.accepted or self._best is None:
            self._best = RemoteScored(step.text, step.score, step.log_likelihood)

    def best(self) -> RemoteScored | None:
        return self._best
