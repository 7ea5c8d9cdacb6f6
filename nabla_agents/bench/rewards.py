"""The rewards of a comparison: named expressions, and controls that make one worse on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from nabla_agents.bench.controls import Flipped, Shuffled, Unlocated, blur
from nabla_agents.config import Settings
from nabla_agents.errors import ConfigurationError
from nabla_agents.named import reward_of, terms_of
from nabla_agents.rewards.base import Reward
from nabla_agents.types import Rollout


class ControlledReward(Settings):
    """A reward made worse on purpose; `of` is an expression.

    flip: the share of verdicts that are turned round (`Flipped`), drawn by `seed`.
    shuffle: it says what it said of answers to other questions (`Shuffled`).
    blur: Gaussian noise on the weights of a learned reward, in standard deviations of each tensor, drawn by `seed`: a
        reward that is wrong, and always in the same way, which a search can exploit.
    places: false takes the places from a tool's verdicts (`Unlocated`).
    """

    of: str
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    shuffle: bool = False
    blur: Annotated[float, Field(ge=0)] = 0.0
    places: bool = True
    seed: int = 0


RewardChoice = str | ControlledReward


def check(table: Mapping[str, RewardChoice]) -> None:
    """Raises ConfigurationError for an expression with an unknown name; nothing is loaded."""
    for name, given in table.items():
        terms_of(_expression(given), {other: _nothing for other in table if other != name})


def made(
    table: Mapping[str, RewardChoice],
    needed: set[str],
    *,
    loading: Mapping[str, Any],
    donors: Callable[[], Sequence[Rollout]],
) -> dict[str, Reward]:
    """The needed rewards of a table. Arms share them, and so do sums; a blurred one has weights of its own.

    `donors` are the answers that stand for others where a reward is shuffled.

    Raises:
        ConfigurationError: a reward that is made of itself, or of nothing.
    """
    shared: dict[str, Reward] = {}

    def make(name: str, inside: tuple[str, ...], known: dict[str, Reward]) -> Reward:
        if name in inside:
            raise ConfigurationError(f"Reward {name!r} is made of itself: {' -> '.join((*inside, name))}.")
        if name in known:
            return known[name]
        given, within = table[name], (*inside, name)
        parts = {} if isinstance(given, ControlledReward) and given.blur else known
        others = {other: partial(make, other, within, parts) for other in table if other != name}
        reward = reward_of(terms_of(_expression(given), others), loading)
        if reward is None:
            raise ConfigurationError(f"Reward {name!r} is none; leave it out, and name no reward for the strategy.")
        known[name] = _controlled(reward, given, donors) if isinstance(given, ControlledReward) else reward
        return known[name]

    return {name: make(name, (), shared) for name in table if name in needed}


def _controlled(reward: Reward, given: ControlledReward, donors: Callable[[], Sequence[Rollout]]) -> Reward:
    if given.blur:
        blur(reward, given.blur, seed=given.seed)
    if not given.places:
        reward = Unlocated(reward)
    if given.flip:
        reward = Flipped(reward, given.flip, seed=given.seed)
    return Shuffled(reward, donors()) if given.shuffle else reward


def _expression(given: RewardChoice) -> str:
    return given if isinstance(given, str) else given.of


def _nothing() -> Reward:
    raise ConfigurationError("a reward was made before anything was loaded")
