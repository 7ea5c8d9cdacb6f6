"""How often a key may ask, by hand."""

from __future__ import annotations

import pytest

from nabla_agents.serve import ApiKey, digest
from nabla_agents.serve.errors import Refusal
from nabla_agents.serve.rates import Rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_grows_again_by_the_second() -> None:
    clock, key = Clock(), ApiKey(id="a", sha256=digest("x"), requests_per_minute=2)
    rates = Rates(clock)
    for _ in range(2):
        rates.count(key)
    with pytest.raises(Refusal, match="2 times a minute") as raised:
        rates.count(key)
    assert raised.value.retry_after == 30.5
    clock.now = 29.0
    with pytest.raises(Refusal):
        rates.count(key)
    clock.now = 31.0
    rates.count(key)
    with pytest.raises(Refusal):
        rates.count(key)
