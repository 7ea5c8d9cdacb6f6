"""A long answer starves nobody: newcomers join within a few decode steps, and who leaves frees its rows with the next.

Counted in decode steps, not in seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from nabla_agents import BestOfN, Budget, Engine, Grammar, Greedy, ImplicitReward, LanguageModel, Nabla, Run, Sampling
from nabla_agents.errors import GrammarError
from nabla_agents.models.constraint import Constraint
from nabla_agents.models.decoding import Decoding
from nabla_agents.models.rows import RolloutJob
from nabla_agents.scheduling.continuous_batch import ContinuousBatch
from nabla_agents.scheduling.scheduler import MAX_BATCH
from nabla_agents.search.operation import Writing, Written
from nabla_agents.testing import random_model

WORDS = ("1", "2", "3", "4", "+", "=")
LONG = Sampling(max_tokens=3000, temperature=1.0)
SHORT = Sampling(max_tokens=16)

pytestmark = pytest.mark.timeout(120)


@cache
def endless(window: int | None = None) -> LanguageModel:
    """A model that never ends by itself."""
    options: dict[str, Any] = {} if window is None else {"sliding_window": window}
    kind = () if window is None else ("mistral",)
    model = random_model(*kind, vocabulary=WORDS, seed=3, width=16, layers=1, context_length=4096, **options)
    model.eos_ids = frozenset()
    return model


@cache
def engine_of(window: int | None = None, *, judged: bool = False) -> Engine:
    reward = ImplicitReward(endless()) if judged else None
    return Engine(model=endless(window), reward=reward, strategy=Greedy())


class Steps:
    """Rows of each decode step; `after(n)` waits until so many more were made."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.moved = threading.Condition()

    def after(self, count: int) -> None:
        with self.moved:
            until = len(self.rows) + count
            assert self.moved.wait_for(lambda: len(self.rows) >= until, 60)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counted, original = Steps(), Decoding.step

    def step(self: Decoding) -> None:
        with counted.moved:
            counted.rows.append(len(self))
            counted.moved.notify_all()
        original(self)

    monkeypatch.setattr(Decoding, "step", step)
    return counted


@pytest.fixture
def begun() -> Iterator[list[Run]]:
    """Runs that are cancelled at the end."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.cancel()
    for run in runs:
        run.drain()


def long_answers(engine: Engine, count: int, strategy: Any) -> list[Run]:
    return [
        engine.submit(engine.request("12", seed=i, strategy=strategy, budget=Budget(rollouts=64), sampling=LONG))
        for i in range(count)
    ]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("count", "strategy"), [(8, Greedy()), (MAX_BATCH // 8, BestOfN(n=8)), (1, BestOfN(n=64))])
def test_a_newcomer_takes_few_steps_more_than_alone(
    steps: Steps, begun: list[Run], window: int | None, count: int, strategy: Any
) -> None:
    """Beside eight long answers, and beside a batch that others have filled; also where rows cannot join others'."""
    engine = engine_of(window)
    request = engine.request("3", strategy=Greedy(), sampling=SHORT)
    before = len(steps.rows)
    alone = engine.submit(request).drain()
    own = len(steps.rows) - before
    begun += long_answers(engine, count, strategy)
    steps.after(20)
    before = len(steps.rows)
    assert engine.submit(request).drain().text == alone.text
    each = 1 if window is None else 2  # two decodings take turns
    assert len(steps.rows) - before <= each * (own + 12)
    assert not any(run.done for run in begun)


def test_a_newcomers_operations_wait_for_nobodys_company(steps: Steps, begun: list[Run]) -> None:
    """Prefill, score, gradient and what is proposed: less than three times its steps alone."""
    engine = engine_of(judged=True)
    request = engine.request("3", strategy=Nabla(min_promise=-50.0), budget=Budget(rollouts=3), sampling=SHORT)
    before = len(steps.rows)
    alone = engine.submit(request).drain()
    own = len(steps.rows) - before
    begun += long_answers(engine, 8, Greedy())
    steps.after(20)
    before = len(steps.rows)
    together = engine.submit(request).drain()
    assert together.text == alone.text
    assert len(steps.rows) - before <= 3 * own


def test_who_leaves_frees_its_rows_with_the_next_step(steps: Steps, begun: list[Run]) -> None:
    engine = engine_of()
    begun += long_answers(engine, 1, Greedy())
    [leaving] = long_answers(engine, 1, BestOfN(n=8))
    steps.after(20)
    assert steps.rows[-1] == 9
    with steps.moved:  # between two steps
        at = len(steps.rows)
        leaving.cancel()
    steps.after(3)
    assert set(steps.rows[at + 1 : at + 3]) == {1}
    leaving.drain()


# ── a grammar that cannot be followed ─────────────────────────────────────────────────────────────────────────────────


def written_beside(model: LanguageModel, jobs: Sequence[RolloutJob]) -> dict[int, Any]:
    batch: ContinuousBatch[int] = ContinuousBatch(model, max_batch=8)
    for i, job in enumerate(jobs):
        batch.add(i, Writing(model, [job]))
    written: dict[int, Any] = {}
    while batch:
        written |= batch.advance()
    return written


def test_a_grammar_that_cannot_be_followed_fails_its_own_search_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are not begun anew: they are written within the same steps."""
    model = random_model(seed=1, width=16, layers=1)
    prompt = model.prompt("x", formatted=True)
    free = Sampling(temperature=1.0)
    bound = Sampling(temperature=1.0, grammar=Grammar.regex("[ab]{40}"))
    jobs = [RolloutJob(prompt, (), sampling, 30, torch.linspace(0.1, 0.9, 30)) for sampling in (free, bound, free)]
    expected, take, calls = model.rollout([jobs[0]]), Constraint.take, list[int]()

    def takes(self: Constraint, ids: Sequence[int]) -> int:
        calls.append(1)
        if len(calls) == 12:
            raise GrammarError("it is too large to follow")
        return take(self, ids)

    monkeypatch.setattr(Constraint, "take", takes)
    monkeypatch.setattr(LanguageModel, "rollout", None)  # nothing is begun anew
    written = written_beside(model, jobs)
    assert isinstance(written[1], GrammarError)
    for i in (0, 2):
        assert isinstance(written[i], Written)
        assert [r.completion_ids for r in written[i].ended] == [r.completion_ids for r in expected]
