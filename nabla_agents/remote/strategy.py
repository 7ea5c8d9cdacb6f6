"""RemoteStrategy: a search by the name that a server has for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nabla_agents.errors import ConfigurationError

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
    """The server's strategy of this name, with some of its settings changed; None is the one it has for itself."""

    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @staticmethod
    def of(strategy: Any) -> RemoteStrategy:
        """The remote strategy that a local one, such as `BestOfN(n=4)`, stands for.

        Raises:
            ConfigurationError: one of your own; or it has settings that are objects, which are not sent.
        """
        kind = type(strategy)
        if strategy is None or isinstance(strategy, RemoteStrategy):
            return strategy or RemoteStrategy()
        if kind.__name__ not in _NAMES or not kind.__module__.startswith("nabla_agents.search"):
            raise ConfigurationError(
                f"The strategy {strategy!r} runs only where its model is: on the server. Have the server offer it "
                "under a name, and ask for RemoteStrategy(name)."
            )
        fields = kind.model_fields
        changed = {name: value for name, value in strategy if value != fields[name].get_default()}
        for name, value in changed.items():
            value = changed[name] = getattr(value, "name", value)  # a direction, by its short name
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
