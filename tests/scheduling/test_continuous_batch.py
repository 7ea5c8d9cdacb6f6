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
    FinishReason,
    Grammar,
    ImplicitReward,
    LanguageModel,
    Nabla,
    NablaParallel,
    Result,
    Sampling,
)
from nabla_agents.errors import NablaError
from nabla_agents.models.decoding import Decoding
from nabla_agents.models.rows import RolloutJob
from nabla_agents.scheduling.continuous_batch import ContinuousBatch
from nabla_agents.search.operation import Writing, Written
from nabla_agents.testing import random_model
from nabla_agents.types import Usage

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1", "2", "3+1=")

pytestmark = pytest.mark.timeout(60)


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1, scale=1.0)


def batch_of(max_batch: int) -> ContinuousBatch[Any]:
    return ContinuousBatch(language_model(), max_batch=max_batch)


def writing(*jobs: RolloutJob) -> Writing:
    return Writing(language_model(), jobs)


def job(question: str, tokens: int, **options: Any) -> RolloutJob:
    uniforms = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens))
    sampling = Sampling(temperature=1.0, **options)
    return RolloutJob(language_model().prompt(question), (), sampling, tokens, uniforms)


def drained(batch: ContinuousBatch[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(500):
        for owner, written in batch.advance().items():
            found[owner] = written.ended if isinstance(written, Written) else written
        if not batch:
            return found
    raise AssertionError("they never end")


def ids(rollouts: Sequence[Any]) -> list[tuple[int, ...]]:
    return [r.completion_ids for r in rollouts]


def count(batch: ContinuousBatch[int], lengths: dict[int, int]) -> None:
    """One step, and the lengths of what ended with it."""
    for owner, written in batch.advance().items():
        assert isinstance(written, Written)
        [rollout] = written.ended
        lengths[owner] = len(rollout.completion_ids)


def test_who_watches_sees_how_much_is_written() -> None:
    batch, own = batch_of(4), writing(job("12", 30), job("3", 30))
    batch.add("a", own)
    seen = [0]
    while batch:
        ended = batch.advance()
        seen.append(own.tokens())
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert seen[-1] == sum(map(len, ids(ended["a"].ended)))


@pytest.mark.parametrize("max_batch", [1, 2, 5, 99])
def test_each_owner_gets_its_own_rollouts_in_order(max_batch: int) -> None:
    asked = {q: [job(q, 3 + (5 * i + k) % 11) for k in range(i % 4)] for i, q in enumerate(QUESTIONS)}
    batch = batch_of(max_batch)
    for owner, jobs in asked.items():
        batch.add(owner, writing(*jobs))
    found = drained(batch)
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
    batch = batch_of(8)
    for i in range(40):
        batch.add(i, writing(job("12", 1 + (17 * i) % 40)))
    written: dict[int, int] = {}
    while len(written) < 32:  # the last eight have no one to follow them
        count(batch, written)
    assert max(widths) == 8
    assert min(widths) >= 7
    while batch:
        count(batch, written)
    assert len(widths) < sum(max(written[i] for i in range(first, first + 8)) for first in range(0, 40, 8))


def test_a_job_that_cannot_begin_fails_its_owner_and_no_other() -> None:
    """A tokenizer of words has no bytes, which a grammar needs."""
    batch = batch_of(4)
    batch.add("good", writing(job("12", 30)))
    batch.advance()
    batch.add("bad", writing(job("3", 6, grammar=Grammar.regex("[12]+"))))
    found = drained(batch)
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
    batch = batch_of(3)
    for owner, jobs in asked.items():
        batch.add(owner, writing(*jobs))
    monkeypatch.setattr(Decoding, during, limited)
    found = drained(batch)
    assert {o: ids(r) for o, r in found.items()} == expected
    total = sum((r.usage for rollouts in found.values() for r in rollouts), Usage())
    assert total.out_of_memory == 1
    assert total.rollouts == 2 * len(QUESTIONS)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_what_is_withdrawn_is_cut_where_it_is_and_the_others_go_on(steps: int) -> None:
    """One row of the two ends by itself; the other owner's are as if nothing had happened."""
    batch = batch_of(8)
    short, long, other = job("12", 2), job("2", 30), job("12", 30)
    batch.add("mine", writing(short, long))
    batch.add("other", writing(other))
    for _ in range(steps):
        batch.advance()
    spent = batch.usage("mine")
    written = batch.withdraw("mine")
    whole = language_model().rollout([short, long, other])
    assert len(whole[1].completion_ids) > 6, "it is still written when it is withdrawn"
    ended = len(whole[0].completion_ids) <= steps
    assert [r.completion_ids for r in written.ended] == [r.completion_ids for r in whole[:1] if ended]
    cut = written.given_up[-1]
    assert cut.completion_ids == whole[1].completion_ids[:steps]
    assert cut.finish_reason is FinishReason.LENGTH
    assert sum((r.usage.flops for r in (*written.ended, *written.given_up)), 0.0) == spent.flops > 0
    assert "mine" not in batch
    assert ids(drained(batch)["other"]) == ids(whole[2:])


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
