"""The coalescer: operations of many searches are joined, every search comes to its end, and nothing waits for ever."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Nabla,
    Reward,
    Rollout,
    RolloutError,
    Sampling,
)
from nabla_agents.batching import Coalescer, OpenBatch
from nabla_agents.models.rows import RolloutJob
from nabla_agents.objective import Objective
from nabla_agents.strategies.search import Cancelled, LocalWorker
from nabla_agents.testing import random_model
from nabla_agents.types import Prompt, Score

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2", "4=4", "1\n1\n1", "2", "3+1=")
SHORT = Sampling(max_tokens=5)

pytestmark = pytest.mark.timeout(10)  # a search that nobody serves would wait for ever


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1)


@cache
def worker() -> LocalWorker:
    model = language_model()
    return LocalWorker(Objective(model, ImplicitReward(language_model(1))), model)


@dataclass(eq=False)
class Recording:
    """The real worker; keeps (operation, rows, thread) of every call, and calls `before` first."""

    tools_judge: ClassVar[bool] = False
    before: Callable[[str, int], None] = lambda kind, rows: None
    calls: list[tuple[str, int, int]] = field(default_factory=list)

    def decoding(self) -> None:
        """Rollouts come whole, so that their calls can be counted."""

    def __getattr__(self, kind: str) -> Callable[..., list[Any]]:
        operation = getattr(worker(), kind)

        def recorded(*columns: Sequence[Any]) -> list[Any]:
            self.calls.append((kind, len(columns[0]), threading.get_ident()))
            self.before(kind, len(columns[0]))
            return operation(*columns)

        return recorded

    def rows(self, kind: str) -> list[int]:
        return [rows for called, rows, _ in self.calls if called == kind]


@cache
def prompt(question: str) -> Prompt:
    return language_model().prompt(question)


def job(question: str, seed: int = 0) -> RolloutJob:
    uniforms = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    return RolloutJob(prompt(question), (), Sampling(temperature=1.0), 5, uniforms)


def texts(rollouts: Sequence[Rollout]) -> list[str]:
    return [r.text for r in rollouts]


# ── joining ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_operations_of_all_searches_run_as_one_on_the_callers_thread() -> None:
    recording = Recording()
    coalescer = Coalescer(recording, max_batch=8)

    def search(question: str) -> tuple[list[Rollout], list[Score | None]]:
        coalescer.prefill([prompt(question)])
        made = coalescer.rollout([job(question)])
        return made, coalescer.score(made)

    results = coalescer.run([lambda q=q: search(q) for q in QUESTIONS])
    assert [(kind, rows) for kind, rows, _ in recording.calls] == [("prefill", 7), ("rollout", 7), ("score", 7)]
    assert {thread for _, _, thread in recording.calls} == {threading.get_ident()}
    for question, (rollouts, scores) in zip(QUESTIONS, results, strict=True):
        expected = worker().rollout([job(question)])
        assert texts(rollouts) == texts(expected)
        [got], [known] = scores, worker().score(expected)
        assert got is not None
        assert known is not None
        assert got.value == pytest.approx(known.value, abs=1e-4)


def test_every_search_gets_its_own_rows_however_many_it_asks_for() -> None:
    counts = (3, 1, 0, 2)
    coalescer = Coalescer(Recording(), max_batch=4)
    results = coalescer.run(
        [
            lambda q=q, n=n: coalescer.rollout([job(q, seed) for seed in range(n)])
            for q, n in zip(QUESTIONS, counts, strict=False)
        ]
    )
    for question, count, rollouts in zip(QUESTIONS, counts, results, strict=False):
        assert texts(rollouts) == [texts(worker().rollout([job(question, seed)]))[0] for seed in range(count)]


@pytest.mark.parametrize(("max_batch", "expected"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (99, [5])])
def test_no_batch_is_larger_than_max_batch(max_batch: int, expected: list[int]) -> None:
    """One search that asks for five rows at once."""
    recording = Recording()
    coalescer = Coalescer(recording, max_batch=max_batch)
    [rollouts] = coalescer.run([lambda: coalescer.rollout([job("12", seed) for seed in range(5)])])
    assert recording.rows("rollout") == expected
    assert texts(rollouts) == [texts(worker().rollout([job("12", seed)]))[0] for seed in range(5)]


def test_models_compute_on_the_callers_thread_alone() -> None:
    """Every thread that computes brings threads of its own for it, and those compete for the same cores."""
    threads: list[int] = []
    engine = Engine(model=language_model(), reward=ImplicitReward(language_model(1)), strategy=Nabla(min_promise=-50.0))
    watched = register_module_forward_hook(lambda *_: threads.append(threading.get_ident()))
    try:
        results = engine.generate_batch(QUESTIONS, sampling=SHORT, budget=Budget(rollouts=4))
    finally:
        watched.remove()
    assert sum(r.usage.gradient_passes for r in results) >= len(QUESTIONS)
    assert set(threads) == {threading.get_ident()}


def test_an_error_while_a_search_computes_reaches_no_other_and_nothing_is_computed_twice() -> None:
    done: list[int] = []
    coalescer = Coalescer(worker(), max_batch=8)

    def task(i: int) -> float:
        done.append(i)
        return 1 / (i - 2)

    def search(i: int) -> str:
        try:
            return f"{coalescer.compute(lambda: task(i)):.2f}"
        except ZeroDivisionError as e:
            return str(e)

    results = coalescer.run([lambda i=i: search(i) for i in range(5)])
    assert results == ["-0.50", "-1.00", "division by zero", "1.00", "0.50"]
    assert sorted(done) == list(range(5))


def test_an_engine_joins_the_rollouts_of_its_prompts() -> None:
    """Best of 3 on 7 prompts, 4 at a time: every batch is full but the last of each group."""
    backend = Recording()
    engine = Engine(model=language_model(), strategy=BestOfN(n=3), rollouts=backend)
    engine.generate_batch(QUESTIONS, sampling=SHORT, max_batch=4)
    assert max(backend.rows("rollout")) == 4
    assert sum(backend.rows("rollout")) == 3 * len(QUESTIONS)
    assert len(backend.rows("rollout")) == 6  # 12 rows of four prompts, then 9 of three


def test_an_engine_joins_gradient_passes_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ImplicitReward(language_model(1))
    engine = Engine(model=language_model(), reward=reward, strategy=Nabla(min_promise=-6.0))
    rows: dict[str, list[int]] = {"gradient": [], "score": []}
    for kind, seen in rows.items():
        original: Any = getattr(ImplicitReward, kind)

        def counted(self: Any, rollouts: Any, *rest: Any, original: Any = original, seen: list[int] = seen) -> Any:
            seen.append(len(rollouts))
            return original(self, rollouts, *rest)

        monkeypatch.setattr(ImplicitReward, kind, counted)
    results = engine.generate_batch(QUESTIONS, sampling=SHORT, budget=Budget(rollouts=3))
    assert sum(rows["gradient"]) == sum(r.usage.gradient_passes for r in results)
    assert sum(rows["score"]) == sum(r.usage.rollouts for r in results)
    assert rows["gradient"][0] == rows["score"][0] == len(QUESTIONS)


# ── fairness ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_search_starves_beside_one_that_asks_all_the_time() -> None:
    """Fifty cheap operations go before the other's rollout, and as soon as they are done it has its turn."""
    coalescer = Coalescer(Recording(), max_batch=2)
    order: list[str] = []

    def busy() -> None:
        for _ in range(50):
            coalescer.prefill([prompt("12")])
            order.append("cheap")
        coalescer.rollout([job("12")])
        order.append("busy")

    def patient() -> None:
        for _ in range(3):
            coalescer.rollout([job("3")])
            order.append("patient")

    coalescer.run([busy, patient])
    assert order.count("patient") == 3
    assert order.count("busy") == 1
    assert set(order[50:52]) == {"busy", "patient"}


def test_a_search_that_ended_makes_room_for_the_next() -> None:
    """One long search does not hold up the queue: the short ones pass through the other place, one after another."""
    coalescer = Coalescer(Recording(), max_batch=2)
    ended: list[str] = []

    def search(name: str, rounds: int) -> Callable[[], str]:
        def run() -> str:
            for _ in range(rounds):
                coalescer.rollout([job("12")])
            ended.append(name)
            return name

        return run

    names = coalescer.run([search("long", 12), *(search(f"short {i}", 2) for i in range(5))])
    assert names == ["long", *(f"short {i}" for i in range(5))]
    assert ended == [*(f"short {i}" for i in range(5)), "long"]


@pytest.mark.parametrize("count", [0, 1, 7, 20])
@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_any_number_of_prompts_comes_back_in_order(count: int, max_batch: int) -> None:
    engine = Engine(model=language_model(), strategy=Greedy())
    prompts = [QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
    results = engine.generate_batch(prompts, sampling=SHORT, max_batch=max_batch)
    greedy = {q: engine.generate(q, sampling=SHORT).text for q in set(prompts)}
    assert [r.text for r in results] == [greedy[q] for q in prompts]
    assert [r.seed for r in results] == list(range(count))


def test_searches_that_ask_for_nothing_end() -> None:
    assert Coalescer(Recording(), max_batch=2).run([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]


# ── errors and interrupts ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_error_of_an_operation_reaches_the_searches_that_asked_for_it_and_no_other() -> None:
    """Rollouts fail; the search that only scores goes on, and the first error is raised when it has ended."""

    def before(kind: str, rows: int) -> None:
        if kind == "rollout":
            raise ValueError("out of order")

    coalescer = Coalescer(Recording(before), max_batch=8)
    known = worker().rollout([job("12")])
    seen: list[str] = []

    def rolling() -> None:
        try:
            coalescer.rollout([job("3")])
        except ValueError as e:
            seen.append(str(e))
            raise

    def scoring() -> None:
        for _ in range(5):
            coalescer.score(known)
        seen.append("scored")

    with pytest.raises(ValueError, match="out of order"):
        coalescer.run([rolling, scoring, rolling])
    assert sorted(seen) == ["out of order", "out of order", "scored"]


def test_a_search_may_go_on_after_an_error_of_its_operation() -> None:
    failed: list[str] = []

    def before(kind: str, rows: int) -> None:
        if kind == "rollout" and not failed:
            failed.append(kind)
            raise ValueError("once")

    coalescer = Coalescer(Recording(before), max_batch=8)

    def retrying(question: str) -> list[Rollout]:
        try:
            return coalescer.rollout([job(question)])
        except ValueError:
            return coalescer.rollout([job(question)])

    results = coalescer.run([lambda: retrying("12"), lambda: retrying("3")])
    assert [texts(r) for r in results] == [texts(worker().rollout([job(q)])) for q in ("12", "3")]


def test_a_search_that_fails_does_not_keep_the_others_waiting() -> None:
    coalescer = Coalescer(Recording(), max_batch=3)
    ended: list[str] = []

    def failing() -> None:
        coalescer.rollout([job("12")])
        raise RuntimeError("a defect")

    def lasting() -> None:
        for _ in range(4):
            coalescer.rollout([job("3")])
        ended.append("lasting")

    with pytest.raises(RuntimeError, match="a defect"):
        coalescer.run([failing, lasting, failing, lasting, lasting])
    assert ended == ["lasting"] * 3


def test_an_interrupt_in_an_operation_cancels_every_search_also_those_that_wait_their_turn() -> None:
    def before(kind: str, rows: int) -> None:
        if kind == "rollout":
            raise KeyboardInterrupt

    recording = Recording(before)
    coalescer = Coalescer(recording, max_batch=2)

    def search() -> str:
        try:
            coalescer.rollout([job("12")])
        except Cancelled:
            return "cancelled"
        return "done"

    assert coalescer.run([search] * 5) == ["cancelled"] * 5
    assert recording.rows("rollout") == [2]  # those behind in the queue asked for nothing that was run


@pytest.mark.parametrize("moment", range(6))
def test_an_interrupt_at_any_moment_leaves_no_search_waiting(moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised between the parts of serving: where a signal arrives is chance."""
    moments, main = iter(range(100)), threading.get_ident()
    original = threading.Event.set

    def interrupted(event: threading.Event) -> None:
        original(event)
        if threading.get_ident() == main and next(moments) == moment:
            raise KeyboardInterrupt

    coalescer = Coalescer(Recording(), max_batch=3)

    def search() -> str:
        try:
            for _ in range(2):
                coalescer.rollout([job("12")])
        except Cancelled:
            return "cancelled"
        return "done"

    monkeypatch.setattr(threading.Event, "set", interrupted)
    results = coalescer.run([search] * 3)
    assert len(results) == 3
    assert set(results) <= {"cancelled", "done"}


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_while_a_search_computes_on_its_own_cancels_those_that_wait() -> None:
    coalescer = Coalescer(Recording(), max_batch=2)
    go_on = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def waiting() -> str:
        try:
            coalescer.rollout([job("12")])
        except Cancelled:
            go_on.set()
            return "cancelled"
        return "done"

    def computing() -> str:
        time.sleep(0.1)  # the other has asked, and nothing is served while this one has not
        signal.pthread_kill(main, signal.SIGINT)
        assert go_on.wait(20)
        with pytest.raises(Cancelled):
            coalescer.rollout([job("3")])
        return "cancelled later"

    assert coalescer.run([waiting, computing]) == ["cancelled", "cancelled later"]


# ── searches that come and go ─────────────────────────────────────────────────────────────────────────────────────────


class SlowTool(Reward):
    """A tool that is done when it is let go."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        self.asked.set()
        assert self.released.wait(8)
        return [Score(float(len(rollout.text))) for rollout in rollouts]


def test_a_slow_tool_holds_up_only_the_search_that_it_judges() -> None:
    tool = SlowTool()
    coalescer = Coalescer(LocalWorker(Objective(language_model(), tool), language_model()), max_batch=8)

    def judged() -> list[Score | None]:
        return coalescer.score(coalescer.rollout([job("12")]))

    def another() -> list[Rollout]:
        while not tool.asked.is_set():
            coalescer.rollout([job("3")])
        made = coalescer.rollout([job("4=4")])
        tool.released.set()  # only now, after a rollout that went on beside it
        return made

    scores, made = coalescer.run([judged, another])
    assert texts(made) == texts(worker().rollout([job("4=4")]))
    assert [score and score.value for score in scores] == [len(worker().rollout([job("12")])[0].text)]


def test_an_interrupt_leaves_no_search_waiting_for_a_tool() -> None:
    tool = SlowTool()
    coalescer = Coalescer(LocalWorker(Objective(language_model(), tool), language_model()), max_batch=8)
    ended: list[str] = []

    def judged() -> None:
        with pytest.raises(Cancelled):
            coalescer.score([worker().rollout([job("12")])[0]])
        ended.append("judged")

    def interrupting() -> None:
        while not tool.asked.is_set():
            coalescer.rollout([job("3")])
        with coalescer._changed:
            coalescer._cancel()
        ended.append("interrupting")

    coalescer.run([judged, interrupting])
    tool.released.set()
    assert sorted(ended) == ["interrupting", "judged"]


@pytest.mark.timeout(60)
def test_searches_that_come_and_go_are_joined_and_each_is_as_alone() -> None:
    engine = Engine(model=language_model(), strategy=BestOfN(n=2), budget=Budget(rollouts=2))
    engine.worker.decoding = lambda: None  # type: ignore[method-assign]  # rollouts come whole, by `rollout`
    batch, widths = OpenBatch(engine.worker, max_batch=8), list[int]()
    rollout = engine.worker.rollout
    engine.worker.rollout = lambda jobs: widths.append(len(jobs)) or rollout(jobs)  # type: ignore[method-assign]
    results: dict[int, str] = {}

    def search(seed: int) -> None:
        with batch.joining():
            run = engine.steps("12", seed=seed, sampling=Sampling(max_tokens=8), worker=batch)
            results[seed] = run.drain().text

    for seeds in (range(4), range(4, 6)):
        threads = [threading.Thread(target=search, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    batch.close()
    assert max(widths) > 2
    alone = [engine.generate("12", seed=seed, sampling=Sampling(max_tokens=8)).text for seed in range(6)]
    assert [results[seed] for seed in range(6)] == alone


@pytest.mark.timeout(60)
def test_an_error_in_an_open_batch_reaches_only_the_search_that_causes_it() -> None:
    engine = Engine(model=language_model(), strategy=Greedy(), budget=Budget(rollouts=1))
    engine.worker.decoding = lambda: None  # type: ignore[method-assign]  # rollouts come whole, by `rollout`
    batch, outcomes = OpenBatch(engine.worker, max_batch=8), dict[str, Any]()
    rollout = engine.worker.rollout

    def fragile(jobs: Sequence[RolloutJob]) -> list[Rollout]:
        if any(job.prompt.question == "3" for job in jobs):
            raise RolloutError("this prompt breaks it")
        return rollout(jobs)

    engine.worker.rollout = fragile  # type: ignore[method-assign]
    ready = threading.Barrier(3)

    def search(question: str) -> None:
        with batch.joining():
            run = engine.steps(question, sampling=Sampling(max_tokens=4), worker=batch)
            ready.wait(30)
            try:
                outcomes[question] = run.drain().text
            except RolloutError as e:
                outcomes[question] = e

    threads = [threading.Thread(target=search, args=(q,)) for q in ("12", "3", "4=4")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    batch.close()
    assert isinstance(outcomes["3"], RolloutError)
    assert isinstance(outcomes["12"], str)
    assert isinstance(outcomes["4=4"], str)


@pytest.mark.timeout(60)
def test_a_closed_open_batch_cancels_what_comes() -> None:
    engine = Engine(model=language_model(), strategy=Greedy())
    batch = OpenBatch(engine.worker, max_batch=8)
    with batch.joining():
        batch.close()
        run = engine.steps("12", worker=batch)
        assert run.drain().finish_reason is FinishReason.INTERRUPTED
