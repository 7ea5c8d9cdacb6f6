"""Engines that judge by something more: a further reward, or what a pydantic class accepts."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from nabla_agents.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from nabla_agents.engine import Engine
    from nabla_agents.rewards import Reward
    from nabla_agents.search import Strategy

_WEIGHT: Final = 3.0  # of a class: an answer that it refuses is of no use, whatever other tools say in [0, 1]
_MOST: Final = 32  # classes per engine that are remembered

_lock = threading.Lock()
_by_class: WeakKeyDictionary[Engine, OrderedDict[tuple[type[BaseModel], bool], Engine]] = WeakKeyDictionary()


def takes_rewards(engine: Any) -> bool:
    """Whether the engine judges in this process; one on a server judges by what the server has."""
    return hasattr(engine, "with_reward")


def judging_too(engine: Engine, reward: Reward, *, strategy: Strategy | None = None) -> Engine:
    """The engine with one reward more. Where its own cannot judge an answer, this one alone does.

    strategy: what it takes if it has no strategy of its own.

    Raises:
        ConfigurationError: the engine is on a server.
    """
    if not takes_rewards(engine):
        raise ConfigurationError(
            f"A reward was given to {engine.model.name!r}, which a server runs: it judges by the rewards that it was "
            "started with. Leave this one out, or load the model here."
        )
    own = engine.objective.reward
    return engine.with_reward(reward if own is None else own.otherwise(0.0) + reward, strategy=strategy)


def judging_by_class(engine: Engine, cls: type[BaseModel], *, told: bool) -> Engine:
    """The engine whose searches look for an answer that the class accepts: one per class, so that calls join.

    told: without a strategy of its own, it tells the model what the class refuses and keeps what stands before that
        (`Refine(keep=True)`): of the searches that were measured on a real model, the one that mends objects. Prompts
        have to be conversations then.
    """
    from nabla_agents.rewards import PydanticClass  # loads torch, as `Refine` does
    from nabla_agents.search import Refine

    with _lock:
        engines = _by_class.setdefault(engine, OrderedDict())
        if (key := (cls, told)) not in engines:
            reward = _WEIGHT * PydanticClass(cls, vouches=False)
            engines[key] = judging_too(engine, reward, strategy=Refine(keep=True) if told else None)
        engines.move_to_end(key)
        while len(engines) > _MOST:
            engines.popitem(last=False)
        return engines[key]
