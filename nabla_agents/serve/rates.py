"""Rates: how often a key may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.keys import ApiKey

_MOST_KEYS: Final = 4096  # whose rate is remembered


class Rates:
    """Takes each request from its key's allowance, which grows again by the second. Used on the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, when that was

    def count(self, key: ApiKey) -> None:
        """One request, of whatever route and whatever becomes of it.

        Raises:
            Refusal: 429 with Retry-After: the key's rate is exceeded.
        """
        if (per_minute := key.requests_per_minute) is None:
            return
        now = self._clock()
        left, then = self._left.pop(key.id, (float(per_minute), now))
        left = min(float(per_minute), left + (now - then) * per_minute / 60)
        self._left[key.id] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _MOST_KEYS:
            self._left.popitem(last=False)
        if left < 1:
            raise Refusal(
                429,
                f"The key {key.id!r} may ask {per_minute} times a minute. Come back later.",
                code="rate_limit_exceeded",
                retry_after=(1 - left) * 60 / per_minute + 0.5,
            )
