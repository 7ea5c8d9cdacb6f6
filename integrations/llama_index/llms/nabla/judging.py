"""What an engine judges by, and engines that judge by something more."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from nabla_agents import ConfigurationError

if TYPE_CHECKING:
    from nabla_agents import Engine, Reward

_WEIGHT: Final = 3.0  # of a class: an answer that it refuses is of no use, whatever other tools say in [0, 1]
_MOST: Final = 32  # classes per engine that are remembered

_lock = threading.Lock()
_by_class: WeakKeyDictionary[Engine, OrderedDict[type[BaseModel], Engine]] = WeakKeyDictionary()


def takes_rewards(engine: Any) -> bool:
    """Whether the engine judges in this process; one on a server judges by what the server has."""
    return hasattr(engine, "with_reward")


def own_reward(engine: Engine) -> Reward | None:
    """What the engine judges by, where that is in this process."""
    return engine.objective.reward if takes_rewards(engine) else None


def judging_too(engine: Engine, reward: Reward) -> Engine:
    """The engine with one reward more. Where its own cannot judge an answer, this one alone does.

    Raises:
        ConfigurationError: the engine is on a server.
    """
    if not takes_rewards(engine):
        raise ConfigurationError(
            f"A reward was given to {engine.model.name!r}, which a server runs: it judges by the rewards that it was "
            "started with. Leave this one out, or load the model here."
        )
    own = own_reward(engine)
    return engine.with_reward(reward if own is None else own.otherwise(0.0) + reward)


def judging_by_class(engine: Engine, cls: type[BaseModel]) -> Engine:
    """The engine whose searches look for an answer that the class accepts: one per class, so that calls join."""
    from nabla_agents import PydanticClass  # loads torch, which a model that is only constructed does not need

    with _lock:
        known = _by_class.setdefault(engine, OrderedDict())
        if cls not in known:
            known[cls] = judging_too(engine, _WEIGHT * PydanticClass(cls, vouches=False))
        known.move_to_end(cls)
        while len(known) > _MOST:
            known.popitem(last=False)
        return known[cls]
