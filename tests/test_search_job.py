"""Searches as adapters run them: in turns, joined, stopped, interrupted."""

import asyncio
import contextvars
import threading
from typing import Any

import pytest

from nabla_agents import (
    ArithmeticSteps,
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Greedy,
    Sampling,
    SearchJob,
    SelfConsistency,
    Step,
)
from nabla_agents.scripted import scripted_model


class Counted:
    """The model's own rollouts, counted, with the threads that asked; breaks on demand."""

    def __init__(self, model: Any) -> None:
        self.model, self.batches, self.threads = model, [], set()
        self.error: BaseException | None = None

    def rollout(self, jobs: Any) -> Any:
        self.batches.append(len(jobs))
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        return self.model.rollout(jobs)


@pytest.fixture(scope="module")
def model() -> Any:
    return scripted_model(lambda prompt: "2 + 2 = 5")


@pytest.fixture
def engine(model: Any) -> Engine:
    """Every call of an engine of its own."""
    return Engine(model=model, reward=ArithmeticSteps(), budget=Budget(rollouts=2), rollouts=Counted(model))


def backend(engine: Engine) -> Any:
    return engine.worker._backend  # type: ignore[attr-defined]


def job(engine: Engine, question: str = "2 + 2?", **options: Any) -> SearchJob:
    given = {"seed": 0, "sampling": Sampling(max_tokens=12), "budget": engine.budget, **options}
    return SearchJob(engine, engine.prompt(question), **given)


async def test_every_way_to_run_a_job_gives_the_engines_text(engine: Engine) -> None:
    expected = engine.generate("2 + 2?", sampling=Sampling(max_tokens=12)).text
    stepped, astepped = job(engine), job(engine)
    assert list(stepped.steps())[-1].committed_text == expected
    assert [step async for step in astepped.asteps()][-1].committed_text == expected
    texts = [stepped.result.text, astepped.result.text, job(engine).drain().text, (await job(engine).adrain()).text]
    assert texts == [expected] * 4
    assert [r.text for r in SearchJob.drain_all([job(engine), job(engine)])] == [expected] * 2


async def test_jobs_with_equal_settings_run_as_one_batch_and_others_do_not(engine: Engine) -> None:
    apart = [job(engine, sampling=Sampling(max_tokens=3)), job(engine, draft="4"), job(engine, strategy=Greedy())]
    same = [job(engine, f"{i} + 2?", seed=i) for i in range(3)]
    await SearchJob.adrain_all([*same, *apart])
    assert backend(engine).batches[0] == 3
    assert all(not one.joins(other) for one in apart for other in same)
    assert len(backend(engine).threads) == 1
    assert threading.get_ident() not in backend(engine).threads


@pytest.mark.parametrize("way", ["steps", "drain", "adrain", "drain_all"])
async def test_steps_are_reported_in_the_context_of_the_jobs_maker_the_last_included(engine: Engine, way: str) -> None:
    whose = contextvars.ContextVar("whose", default="nobody's")
    heard: list[tuple[str, bool]] = []

    def make(name: str) -> SearchJob:
        whose.set(name)
        return job(engine, report=lambda step: heard.append((whose.get(), step.done)))

    jobs = [contextvars.copy_context().run(make, name) for name in ("first", "second")]
    if way == "steps":
        for one in jobs:
            list(one.steps())
    elif way == "drain":
        for one in jobs:
            one.drain()
    elif way == "adrain":
        await asyncio.gather(*(one.adrain() for one in jobs))
    else:
        SearchJob.drain_all(jobs)
    for name, one in zip(("first", "second"), jobs, strict=True):
        assert [done for who, done in heard if who == name] == [step.done for step in one.result.trace]


async def test_a_cancelled_await_stops_its_own_search_alone(engine: Engine) -> None:
    started, go = threading.Event(), threading.Event()

    def wait(step: Step) -> None:
        started.set()
        go.wait(20)

    mine, others = job(engine, report=wait), job(engine, "1 + 1?")
    task, other = asyncio.create_task(mine.adrain()), asyncio.create_task(others.adrain())
    while not started.is_set():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert (await other).finish_reason is not FinishReason.INTERRUPTED
    late = job(engine)
    late.cancel()
    assert late.drain().finish_reason is FinishReason.INTERRUPTED, "cancelled by its owner, not by Ctrl-C"


@pytest.mark.parametrize("count", [1, 2])
async def test_an_error_reaches_all_who_wait_and_an_interrupt_ends_the_caller(engine: Engine, count: int) -> None:
    backend(engine).error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        SearchJob.drain_all([job(engine) for _ in range(count)])
    ends = await asyncio.gather(*(job(engine).adrain() for _ in range(count)), return_exceptions=True)
    assert [type(end) for end in ends] == [RuntimeError] * count
    backend(engine).error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        SearchJob.drain_all([job(engine) for _ in range(count)])


@pytest.mark.parametrize("strategy", [BestOfN(n=2), SelfConsistency(n=2)])
def test_a_settled_draft_ends_the_search(engine: Engine, strategy: Any) -> None:
    assert job(engine, strategy=strategy, settled=lambda step: True).drain().usage.rollouts == 1
    assert job(engine, strategy=strategy, settled=lambda step: False).drain().usage.rollouts == 2
