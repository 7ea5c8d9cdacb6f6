"""The scheduler: operations of many searches are joined, every search ends, and limits bind at each step."""

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_hook

from nabla_agents import (
    BestOfN,
    Budget,
    ConfigurationError,
    Engine,
    FinishReason,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Nabla,
    Result,
    Reward,
    Rollout,
    RolloutError,
    Run,
    Sampling,
    SelfConsistency,
    Step,
)
from nabla_agents.models.decoding import Decoding
from nabla_agents.scheduling.scheduler import MAX_BATCH
from nabla_agents.search.base import rollout_step
from nabla_agents.testing import FixedReward, random_model
from nabla_agents.types import Score

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1", "2", "3+1=")
SHORT = Sampling(max_tokens=5)
LONG = Sampling(max_tokens=200, temperature=1.0)

pytestmark = pytest.mark.timeout(60)  # a search that nobody drives would wait for ever


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1)


@cache
def endless() -> LanguageModel:
    """A model that never ends by itself: every word is as likely as any other, and there is no end token."""
    model = random_model(vocabulary=WORDS, seed=3, width=16, layers=1)
    model.eos_ids = frozenset()
    return model


def engine_of(**options: Any) -> Engine:
    return Engine(**{"model": language_model(), "reward": ImplicitReward(language_model(1)), **options})


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> "Watch":
    watch = Watch()
    step, add = Decoding.step, Decoding.add

    def stepped(self: Decoding) -> None:
        watch.steps.append(len(self))
        watch.before(len(watch.steps))
        step(self)

    def added(self: Decoding, jobs: Any) -> Any:
        watch.added.append(len(jobs))
        return add(self, jobs)

    monkeypatch.setattr(Decoding, "step", stepped)
    monkeypatch.setattr(Decoding, "add", added)
    return watch


class Watch:
    """Rows of each decode step and of each prefill; `before` is called before a step, with its number."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.added: list[int] = []
        self.before: Callable[[int], object] = lambda step: None


class Custom:
    """A strategy that is a function of the search."""

    rule = "objective"

    def __init__(self, steps: Callable[[Any], AsyncIterator[Step]]) -> None:
        self.steps = steps

    def select(self, pool: Any) -> Any:
        return pool.best()


def texts(results: Sequence[Result]) -> list[Any]:
    return [(r.token_ids, [(s.position, s.accepted, s.text) for s in r.trace]) for r in results]


# ── joining ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_compute_on_one_thread_whoever_asks() -> None:
    """Every thread that computes brings threads of its own for it, and those compete for the same cores."""
    threads: list[int] = []
    engine = engine_of(strategy=Nabla(min_promise=-50.0), budget=Budget(rollouts=4))
    watched = register_module_forward_hook(lambda *_: threads.append(threading.get_ident()))

    async def many() -> list[Result]:
        return await asyncio.gather(*(engine.submit(engine.request(q, sampling=SHORT)) for q in QUESTIONS))

    try:
        results = [*engine.generate_batch(QUESTIONS, sampling=SHORT), *asyncio.run(many())]
        others = [threading.Thread(target=engine.generate, args=(q,)) for q in QUESTIONS[:2]]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join()
    finally:
        watched.remove()
    assert sum(r.usage.gradient_passes for r in results) >= len(QUESTIONS)
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_gradient_passes_and_scores_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, list[int]] = {"gradient": [], "score": []}
    for kind, seen in rows.items():
        original: Any = getattr(ImplicitReward, kind)

        def counted(self: Any, rollouts: Any, *rest: Any, original: Any = original, seen: list[int] = seen) -> Any:
            seen.append(len(rollouts))
            return original(self, rollouts, *rest)

        monkeypatch.setattr(ImplicitReward, kind, counted)
    engine = engine_of(strategy=Nabla(min_promise=-6.0), budget=Budget(rollouts=3))
    results = engine.generate_batch(QUESTIONS, sampling=SHORT)
    assert sum(rows["gradient"]) == sum(r.usage.gradient_passes for r in results)
    assert sum(rows["score"]) == sum(r.usage.rollouts for r in results)
    assert max(rows["gradient"]) > 2
    assert max(rows["score"]) > 2


def test_engines_of_one_model_write_in_one_batch(decoding: Watch) -> None:
    """Two rewards, one language model: their rollouts need not wait for each other."""
    engine = engine_of(strategy=BestOfN(n=2), budget=Budget(rollouts=2))
    other = engine.with_reward(FixedReward(lambda r: float(len(r.text))))
    pairs = itertools.product((engine, other), enumerate(QUESTIONS))
    requests = [(one, one.request(q, sampling=LONG, seed=i)) for one, (i, q) in pairs]
    runs = [one.submit(request) for one, request in requests]
    found = [run.drain() for run in runs]
    assert max(decoding.steps) > 2 * len(QUESTIONS)
    assert texts(found) == texts([one.submit(request).drain() for one, request in requests])


def test_no_batch_is_wider_than_the_most_and_none_is_lost(decoding: Watch) -> None:
    engine = engine_of(reward=None, strategy=SelfConsistency(n=70), budget=Budget(rollouts=None))
    result = engine.generate("12", sampling=LONG)
    assert result.usage.rollouts == 70
    assert max(decoding.steps) <= MAX_BATCH
    assert max(decoding.added) == MAX_BATCH


@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("max_batch", [1, 3, 50])
def test_any_number_of_prompts_comes_back_in_order(count: int, max_batch: int) -> None:
    engine = Engine(model=language_model(), strategy=Greedy())
    prompts = [QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
    results = engine.generate_batch(prompts, sampling=SHORT, max_batch=max_batch)
    greedy = {q: engine.generate(q, sampling=SHORT).text for q in set(prompts)}
    assert [r.text for r in results] == [greedy[q] for q in prompts]
    assert [r.seed for r in results] == list(range(count))


def test_a_search_that_is_not_asked_on_holds_no_place() -> None:
    """More searches than run at a time, each of which has made one step and waits to be asked."""
    engine = engine_of(strategy=Nabla(min_promise=-50.0), budget=Budget(rollouts=3))
    waiting = [engine.steps("12", seed=i, sampling=SHORT) for i in range(MAX_BATCH + 3)]
    for run in waiting:
        next(run)
    assert engine.generate("3", sampling=SHORT).text == engine.generate("3", sampling=SHORT).text
    assert {run.drain().usage.rollouts for run in waiting} <= {1, 2, 3}


def test_a_short_question_does_not_wait_for_long_answers(decoding: Watch) -> None:
    """Beside eight answers of 200 tokens: its prefill, its five tokens and its scoring come within some steps each."""
    engine = engine_of(model=endless(), strategy=Greedy())
    long = [engine.submit(engine.request("12", seed=i, sampling=LONG)) for i in range(8)]
    while len(decoding.steps) < 3:
        time.sleep(0.001)
    before = len(decoding.steps)
    engine.generate("3", sampling=SHORT)
    assert len(decoding.steps) - before < 100
    assert not any(run.done for run in long)
    for run in long:
        run.cancel()


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Fragile:
    """A backend that breaks on one prompt, whatever shares its batch."""

    def rollout(self, jobs: Any) -> list[Rollout]:
        if any(job.prompt.question == "3" for job in jobs):
            raise RolloutError("this prompt breaks it")
        return language_model().rollout(jobs)


async def test_an_error_of_an_operation_reaches_only_the_search_that_causes_it() -> None:
    engine = engine_of(rollouts=Fragile(), strategy=Greedy())
    runs = [engine.submit(engine.request(q, sampling=SHORT)) for q in QUESTIONS]
    found = await asyncio.gather(*runs, return_exceptions=True)
    assert [isinstance(one, RolloutError) for one in found] == [q == "3" for q in QUESTIONS]
    with pytest.raises(RolloutError, match="this prompt breaks it"):
        runs[1].drain()
    assert runs[1].result.detail == "RolloutError: this prompt breaks it"


def test_a_search_may_go_on_after_an_error_of_its_operation() -> None:
    async def retrying(search: Any) -> AsyncIterator[Step]:
        with pytest.raises(RolloutError):
            await search.roll([()], temperature=0.0)
        search._backend = language_model()
        for entry in await search.roll([()], temperature=0.0):
            yield rollout_step(search, entry, accepted=True)

    engine: Any = engine_of(rollouts=Fragile(), strategy=Custom(retrying))
    assert engine.generate("3", sampling=SHORT).text == engine_of(strategy=Greedy()).generate("3", sampling=SHORT).text


def test_a_strategy_that_awaits_something_else_is_told_so() -> None:
    async def asleep(search: Any) -> AsyncIterator[Step]:
        await asyncio.sleep(0)
        yield Step("rollout", "")

    engine: Any = engine_of(strategy=Custom(asleep))
    with pytest.raises(ConfigurationError, match="expected operations of its search alone"):
        engine.generate("12")


def test_a_strategy_that_is_no_coroutine_is_refused_at_once() -> None:
    class Old(Custom):
        def __init__(self) -> None:
            pass

        def steps(self, search: Any) -> Any:
            yield Step("rollout", "")

    with pytest.raises(ConfigurationError, match="async def steps"):
        engine_of().generate("12", strategy=Old())


# ── tools ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class SlowTool(Reward):
    """A tool that is done when it is let go."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.asked.set()
        assert self.released.wait(20)
        return [Score(float(len(rollout.text))) for rollout in rollouts]


def test_a_slow_tool_holds_up_only_the_search_that_it_judges() -> None:
    tool = SlowTool()
    judged = engine_of(reward=tool, strategy=Greedy())
    run = judged.submit(judged.request("12", sampling=SHORT))
    assert tool.asked.wait(20)
    other = engine_of(reward=None, strategy=Greedy()).generate("4=4", sampling=SHORT)
    assert not run.done
    tool.released.set()
    assert other.text
    assert run.drain().score == Score(float(len(run.result.text)), usage=run.result.score.usage)  # type: ignore[union-attr]


def test_a_search_that_is_cancelled_does_not_wait_for_its_tool_and_keeps_its_text() -> None:
    tool = SlowTool()
    engine = engine_of(reward=tool, strategy=BestOfN(n=2))
    run = engine.submit(engine.request("12", sampling=SHORT))
    assert tool.asked.wait(20)
    run.cancel()
    result = run.drain()
    tool.released.set()
    assert result.finish_reason is FinishReason.INTERRUPTED
    assert result.usage.rollouts == 2
    assert result.score is not None
    assert result.score.explanation == "not judged: the search was stopped"
    assert len(result.token_ids) > 0


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=4), Nabla()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_cancelled_run_ends_within_one_decode_step_and_gives_its_text_as_cut(
    decoding: Watch, strategy: Any, steps: int
) -> None:
    engine = engine_of(model=endless(), reward=None, strategy=strategy)
    runs: list[Run] = []
    decoding.before = lambda step: runs[0].cancel() if step == steps else None
    runs.append(engine.steps("12", sampling=LONG))
    result = runs[0].drain()
    assert len(decoding.steps) == steps
    assert (result.finish_reason, result.truncated) == (FinishReason.INTERRUPTED, True)
    assert len(result.token_ids) == steps + 1
    assert result.usage.rollouts == 1
    assert result.usage.generated_tokens == decoding.steps[0] * (steps + 1)


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=4), Nabla()], ids=lambda s: type(s).__name__)
def test_seconds_end_a_search_within_one_decode_step(decoding: Watch, strategy: Any) -> None:
    """Each step takes 20 ms, so that 0.1 s are over in the fifth at the latest."""
    decoding.before = lambda step: time.sleep(0.02)
    engine = engine_of(model=endless(), reward=None, strategy=strategy)
    result = engine.generate("12", sampling=LONG, budget=Budget(seconds=0.1))
    assert 1 <= len(decoding.steps) <= 5
    assert (result.finish_reason, result.truncated) == (FinishReason.BUDGET, True)
    assert result.detail.startswith("seconds 0.1")
    assert len(result.token_ids) == len(decoding.steps) + 1


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=4), Nabla()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_flops_are_overrun_by_one_decode_step_at_most(decoding: Watch, strategy: Any, share: float) -> None:
    engine = engine_of(model=endless(), reward=None, strategy=strategy)
    whole = engine.generate("12", sampling=LONG, budget=Budget(rollouts=1)).usage.flops
    decoding.steps.clear()
    limit = share * whole
    result = engine.generate("12", sampling=LONG, budget=Budget(rollouts=8, flops=limit))
    step = endless().usage(forward=decoding.steps[0], rows=decoding.steps[0]).flops
    assert limit <= result.usage.flops <= limit + step
    assert result.detail.startswith("flops ")
    assert result.truncated


def test_what_is_finished_when_the_time_is_over_is_judged_and_the_rest_given_up(decoding: Watch) -> None:
    """Four completions, one of which ends early; the others are in the ledger, and not in the pool."""
    engine = engine_of(model=random_model(vocabulary=WORDS, seed=0, width=16, layers=1), strategy=BestOfN(n=4))
    lengths = {s: len(engine.generate("12", seed=s, sampling=LONG, strategy=BestOfN(n=1)).token_ids) for s in range(9)}
    assert len(set(lengths.values())) > 1
    decoding.steps.clear()
    runs: list[Run] = []
    decoding.before = lambda step: runs[0].cancel() if len(decoding.steps) > 1 and decoding.steps[-1] < 4 else None
    runs.append(engine.steps("12", sampling=LONG))
    result = runs[0].drain()
    assert result.finish_reason is FinishReason.INTERRUPTED
    assert 1 <= result.usage.rollouts < 4
    assert result.usage.reward_calls == result.usage.rollouts
    assert not result.truncated
    assert result.score is not None
    assert result.score.judged


@pytest.mark.parametrize(("calls", "expected"), [(1, 0), (2, 1), (5, 2), (8, 4)])
def test_reward_calls_cap_a_batch(calls: int, expected: int) -> None:
    """A sum of two rewards is two calls for each completion."""
    both = FixedReward(lambda r: 1.0) + FixedReward(lambda r: 2.0)
    engine = engine_of(reward=both, strategy=BestOfN(n=8))
    result = engine.generate("12", sampling=SHORT, budget=Budget(reward_calls=calls))
    assert (result.usage.rollouts, result.usage.reward_calls) == (expected, 2 * expected)
    assert result.finish_reason is FinishReason.BUDGET
    assert result.detail.startswith(f"reward_calls {2 * expected}/{calls}")


# ── from every side ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_is_one_from_every_side() -> None:
    engine = engine_of(strategy=Nabla(min_promise=-6.0), budget=Budget(rollouts=4))
    request = engine.request("12", seed=3, sampling=SHORT)
    whole = await asyncio.to_thread(engine.submit(request).drain)
    assert texts([await engine.submit(request)]) == texts([whole])
    stepped, run = [], engine.submit(request, on_demand=True)
    async for step in run:
        stepped.append(step.text)
        assert len(run.result.trace) == len(stepped), "no step is made before it is asked for"
    assert stepped == [step.text for step in whole.trace]
    assert [step.text for step in engine.submit(request)] == stepped
    assert texts([run.result, await run]) == texts([whole, whole])


async def test_eight_streams_side_by_side_are_each_as_alone() -> None:
    engine = engine_of(strategy=Nabla(min_promise=-6.0), budget=Budget(rollouts=4))

    async def stream(seed: int) -> list[str]:
        return [step.text async for step in engine.steps("12", seed=seed, sampling=SHORT)]

    together = await asyncio.gather(*map(stream, range(8)))
    assert list(together) == [[s.text for s in engine.generate("12", seed=i, sampling=SHORT).trace] for i in range(8)]


async def test_a_cancelled_task_frees_the_engine(decoding: Watch) -> None:
    engine = engine_of(model=endless(), reward=None, strategy=Greedy())
    decoding.before = lambda step: time.sleep(0.005)
    run = engine.submit(engine.request("12", sampling=LONG))
    task = asyncio.ensure_future(run)
    while len(decoding.steps) < 3:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await asyncio.to_thread(run.drain)
    assert result.finish_reason is FinishReason.INTERRUPTED
    assert len(result.token_ids) < 100


def test_a_run_that_nobody_holds_is_cancelled(decoding: Watch) -> None:
    engine = engine_of(model=endless(), reward=None, strategy=BestOfN(n=3))
    decoding.before = lambda step: time.sleep(0.002)
    run = engine.submit(engine.request("12", sampling=LONG))
    while not decoding.steps:
        time.sleep(0.001)
    del run
    gc.collect()
    time.sleep(0.05)
    steps = len(decoding.steps)
    time.sleep(0.05)
    assert len(decoding.steps) == steps < 100


@pytest.mark.parametrize("way", ["with", "async with"])
async def test_leaving_a_block_cancels(decoding: Watch, way: str) -> None:
    engine = engine_of(model=endless(), reward=None, strategy=Greedy())
    if way == "with":
        with engine.steps("12", sampling=LONG) as run:
            assert next(run).kind == "token"
    else:
        async with engine.steps("12", sampling=LONG) as run:
            assert (await anext(run)).kind == "token"
    assert run.cancelled
    assert run.drain().finish_reason is FinishReason.INTERRUPTED


@pytest.mark.parametrize("strategy", [Nabla(min_promise=-50.0), BestOfN(n=2), SelfConsistency(n=2)])
def test_a_search_ends_where_its_request_has_enough(strategy: Any) -> None:
    engine = engine_of(strategy=strategy, budget=Budget(rollouts=3))
    request = engine.request("12", sampling=SHORT)

    def asked(until: Any) -> Result:
        return engine.submit(type(request)(**{**vars(request), "until": until})).drain()

    enough, never = asked(lambda step: True), asked(lambda step: False)
    assert (enough.usage.rollouts, enough.detail) == (1, "good enough")
    assert never.usage.rollouts > 1


# ── text that nothing revises ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stop", [(), ("12",), ("=\n", "444"), ("3", "1+")], ids=str)
@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=1)], ids=lambda s: type(s).__name__)
def test_text_that_nothing_revises_comes_token_by_token(strategy: Any, stop: tuple[str, ...]) -> None:
    seen = 0
    for question, seed in itertools.product(QUESTIONS, range(3)):
        run = engine_of(reward=None, strategy=strategy).steps(question, seed=seed, sampling=LONG.replace(stop=stop))
        steps = list(run)
        told = [step.committed_text for step in steps if step.kind == "token"]
        assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise([*told, run.result.text]))
        assert len(set(told)) == len(told) <= len(run.result.token_ids)
        assert not any(s in text for s in stop for text in told)
        assert [step.kind for step in run.result.trace] == ["rollout", "commit"]
        seen += len(told)
    assert seen > 20


def test_a_strategy_that_wraps_one_streams_nothing_that_it_may_take_back() -> None:
    async def twice(search: Any) -> AsyncIterator[Step]:
        for _ in range(2):
            async for step in Greedy().steps(search):
                yield step

    run = engine_of(strategy=Custom(twice)).steps("12", sampling=SHORT)
    assert [(step.kind, step.committed_text) for step in run][:-1] == [("rollout", ""), ("rollout", "")]
