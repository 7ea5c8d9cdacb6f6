"""Rollouts of many searches in one batch: it stays full, each gets its own, and a failure reaches whom it is of."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    Grammar,
    ImplicitReward,
    LanguageModel,
    Nabla,
    NablaParallel,
    Result,
    Sampling,
)
from nabla_agents.errors import NablaError
from nabla_agents.flights import Flights
from nabla_agents.models.decoding import Decoding
from nabla_agents.models.rows import RolloutJob
from nabla_agents.objective import Objective
from nabla_agents.strategies.search import LocalWorker
from nabla_agents.testing import random_model
from nabla_agents.types import Usage

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1", "2", "3+1=")

pytestmark = pytest.mark.timeout(60)


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1, scale=1.0)


def worker() -> LocalWorker:
    return LocalWorker(Objective(language_model()), language_model())


def job(question: str, tokens: int, **options: Any) -> RolloutJob:
    uniforms = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens))
    sampling = Sampling(temperature=1.0, **options)
    return RolloutJob(language_model().prompt(question), (), sampling, tokens, uniforms)


def drained(flights: Flights[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(500):
        for owner, rollouts in flights.advance().items():
            found[owner] = rollouts
            flights.remove(owner)
        if not flights:
            return found
    raise AssertionError("they never land")


def ids(rollouts: Sequence[Any]) -> list[tuple[int, ...]]:
    return [r.completion_ids for r in rollouts]


@pytest.mark.parametrize("max_batch", [1, 2, 5, 99])
def test_each_owner_gets_its_own_rollouts_in_order(max_batch: int) -> None:
    asked = {q: [job(q, 3 + (5 * i + k) % 11) for k in range(i % 4)] for i, q in enumerate(QUESTIONS)}
    flights: Flights[str] = Flights(worker(), max_batch=max_batch)
    for owner, jobs in asked.items():
        flights.add(owner, jobs)
    found = drained(flights)
    assert {o: ids(r) for o, r in found.items()} == {o: ids(language_model().rollout(j)) for o, j in asked.items()}


def test_the_batch_is_refilled_while_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty jobs of 1 to 40 tokens, eight at a time: as long as some wait, the batch is at least three quarters full
    when a step is made; so it takes fewer steps than groups of eight that wait for their longest.
    """
    widths: list[int] = []
    original = Decoding.step

    def step(self: Decoding) -> None:
        widths.append(len(self))
        original(self)

    monkeypatch.setattr(Decoding, "step", step)
    flights: Flights[int] = Flights(worker(), max_batch=8)
    for i in range(40):
        flights.add(i, [job("12", 1 + (17 * i) % 40)])
    written: dict[int, int] = {}
    while len(written) < 32:  # the last eight have no one to follow them
        for owner, [rollout] in flights.advance().items():
            written[owner] = len(rollout.completion_ids)
            flights.remove(owner)
    assert max(widths) == 8
    assert min(widths) >= 7
    while flights:
        for owner, [rollout] in flights.advance().items():
            written[owner] = len(rollout.completion_ids)
            flights.remove(owner)
    assert len(widths) < sum(max(written[i] for i in range(first, first + 8)) for first in range(0, 40, 8))


def test_a_job_that_cannot_begin_fails_its_owner_and_no_other() -> None:
    """A tokenizer of words has no bytes, which a grammar needs."""
    flights: Flights[str] = Flights(worker(), max_batch=4)
    flights.add("good", [job("12", 30)])
    flights.advance()
    flights.add("bad", [job("3", 6, grammar=Grammar.regex("[12]+"))])
    found = drained(flights)
    assert isinstance(found["bad"], NablaError)
    assert ids(found["good"]) == ids(language_model().rollout([job("12", 30)]))


@pytest.mark.parametrize("moment", [0, 1, 7])
@pytest.mark.parametrize("during", ["add", "step"])
def test_what_does_not_fit_is_written_anew_in_halves(monkeypatch: pytest.MonkeyPatch, during: str, moment: int) -> None:
    """The batch runs out of memory once; what waits then, and what was written, comes out as if it had not."""
    original, calls = getattr(Decoding, during), iter(range(10**6))

    def limited(self: Decoding, *arguments: Any) -> Any:
        if next(calls) == moment:
            raise torch.OutOfMemoryError("no room")
        return original(self, *arguments)

    asked = {q: [job(q, 4 + 3 * i), job(q, 9)] for i, q in enumerate(QUESTIONS)}
    expected = {o: ids(language_model().rollout(j)) for o, j in asked.items()}
    flights: Flights[str] = Flights(worker(), max_batch=3)
    for owner, jobs in asked.items():
        flights.add(owner, jobs)
    monkeypatch.setattr(Decoding, during, limited)
    found = drained(flights)
    assert {o: ids(r) for o, r in found.items()} == expected
    total = sum((r.usage for rollouts in found.values() for r in rollouts), Usage())
    assert total.out_of_memory == 1
    assert total.rollouts == 2 * len(QUESTIONS)


def texts(results: Sequence[Result]) -> list[Any]:
    return [(r.token_ids, [(s.position, s.accepted, s.text) for s in r.trace]) for r in results]


@pytest.mark.parametrize("max_batch", [1, 3, 32])
@pytest.mark.parametrize(
    "strategy", [Nabla(min_promise=-9.0), NablaParallel(min_promise=-9.0), BestOfN(n=3)], ids=lambda s: type(s).__name__
)
def test_a_batch_of_searches_is_each_search_alone(strategy: Any, max_batch: int) -> None:
    """Token for token, step for step, at the same cost in rollouts; in a batch that is joined and left all the time."""
    engine = Engine(
        model=language_model(), reward=ImplicitReward(language_model(1)), strategy=strategy, budget=Budget(rollouts=4)
    )
    options: dict[str, Any] = {"sampling": Sampling(max_tokens=12)}
    together = engine.generate_batch(QUESTIONS, seeds=range(7), max_batch=max_batch, **options)
    alone = [engine.generate(q, seed=i, **options) for i, q in enumerate(QUESTIONS)]
    assert texts(together) == texts(alone)
    assert [r.usage.rollouts for r in together] == [r.usage.rollouts for r in alone]
    assert [r.usage.gradient_passes for r in together] == [r.usage.gradient_passes for r in alone]
