"""Three splits that share no content: which one something belongs to is a function of what it is."""

import hashlib
from typing import Final, Literal

from nabla_agents.errors import ConfigurationError

Split = Literal["train", "test", "validation"]
SPLITS: Final[tuple[Split, ...]] = ("train", "test", "validation")
_HELD_OUT: Final[dict[int, Split]] = {0: "test", 1: "validation"}  # of eight buckets; the other six are train


def split_of(key: str) -> Split:
    """The split of what `key` names: a function of the key alone, so no wording moves it."""
    return _HELD_OUT.get(hashlib.sha256(key.encode()).digest()[0] % 8, "train")


def check_request(function: str, n: int, split: str) -> None:
    """Raises ConfigurationError for a count or a split that there is not."""
    if n < 0:
        raise ConfigurationError(f"{function}() got n={n}; expected a count of 0 or more.")
    if split not in SPLITS:
        raise ConfigurationError(f"{function}() got split={split!r}; expected one of {', '.join(map(repr, SPLITS))}.")
