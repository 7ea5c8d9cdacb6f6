"""What a search computes by itself, between two operations, is bounded and holds up no other."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch

from nabla_agents import AdamDTO, Budget, ConfigurationError, Engine, FinishReason, Greedy, Nabla, Sampling
from nabla_agents.models.decoding import Decoding
from nabla_agents.search import proposals
from nabla_agents.testing import random_model

pytestmark = pytest.mark.timeout(60)


@cache
def endless() -> Engine:
    model = random_model(vocabulary=("1", "2", "3", "4", "+", "="), seed=3, width=16, layers=1)
    model.eos_ids = frozenset()
    return Engine(model=model, strategy=Greedy())


def test_a_refinement_ends_with_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand steps are wanted; the search is stopped amid the third."""
    engine, steps = endless(), list[int]()
    strategy = Nabla(dto=AdamDTO(steps=10_000, stop_on_flip=False))
    run = engine.submit(engine.request("12", strategy=strategy, sampling=Sampling(max_tokens=8)), on_demand=True)
    original = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 3:
            run.cancel()
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert run.drain().finish_reason is FinishReason.INTERRUPTED
    assert len(steps) == 3


def test_a_refinement_has_a_largest_number_of_steps() -> None:
    with pytest.raises(ConfigurationError, match="less than or equal to 10000"):
        AdamDTO(steps=1_000_000_000)


def test_the_refinement_of_a_long_completion_lets_others_write_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 tokens 64 are refined at a time."""
    events, engine = list[str](), endless()
    step, changes = Decoding.step, proposals.best_changes
    monkeypatch.setattr(Decoding, "step", lambda self: (events.append("step"), step(self))[1])
    monkeypatch.setattr(proposals, "best_changes", lambda *a, **o: (events.append("refined"), changes(*a, **o))[1])
    strategy = Nabla(min_promise=50.0, refinable=proposals.Refinable())
    options: dict[str, Any] = {"budget": Budget(rollouts=2)}
    long = engine.submit(engine.request("12", strategy=strategy, sampling=Sampling(max_tokens=200), **options))
    other = engine.submit(engine.request("3", strategy=Greedy(), sampling=Sampling(max_tokens=400), **options))
    long.drain()
    other.drain()
    at = [i for i, event in enumerate(events) if event == "refined"]
    assert len(at) == 4
    assert all(b - a > 1 for a, b in pairwise(at))
