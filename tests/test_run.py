"""A run: its steps and trace, how it is stopped, and what its budget allows."""

import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from nabla_agents import (
    BestOfN,
    Budget,
    Engine,
    FinishReason,
    Greedy,
    ImplicitReward,
    LanguageModel,
    Nabla,
    Result,
    Rollout,
    Run,
    Sampling,
    SelfConsistency,
)
from nabla_agents.models.rows import RolloutJob
from nabla_agents.testing import FixedReward, random_model

WORDS = ("1", "2", "3", "4", "+", "=", "\n")
QUESTIONS = ("12", "3", "4+4+4=1\n2")
SHORT = Sampling(max_tokens=6)
EAGER = Nabla(min_promise=-6.0)


@cache
def language_model(seed: int = 0) -> LanguageModel:
    return random_model(vocabulary=WORDS, seed=seed, width=16, layers=1)


@dataclass(eq=False)
class Hooked:
    """The model's own rollouts; `before` is called with the number of each call."""

    before: Callable[[int], None]
    calls: int = 0

    def rollout(self, jobs: Sequence[RolloutJob]) -> list[Rollout]:
        self.calls += 1
        self.before(self.calls)
        return language_model().rollout(jobs)


def engine_of(**options: Any) -> Engine:
    return Engine(
        **{"model": language_model(), "reward": ImplicitReward(language_model(1)), "strategy": EAGER, **options}
    )


def test_a_run_whose_backend_broke_has_ended_and_keeps_what_it_had() -> None:
    def broken(call: int) -> None:
        if call == 2:
            raise OSError("the server is gone")

    run = engine_of(rollouts=Hooked(broken)).steps(QUESTIONS[0], sampling=SHORT)
    first = next(run)
    with pytest.raises(OSError, match="server is gone"):
        next(run)
    with pytest.raises(StopIteration):
        next(run)
    assert run.result.text == first.text
    assert run.result.trace == (first,)


def interrupt_main() -> None:
    """Ctrl-C, from any thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def interrupt_at(call: int) -> Callable[[int], None]:
    def before(calls: int) -> None:
        if calls == call:
            raise KeyboardInterrupt

    return before


# ── steps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strategy", [Greedy(), BestOfN(n=3), SelfConsistency(n=3), EAGER, Nabla.paper()])
def test_the_trace_is_every_step_and_the_last_commits_the_text(strategy: Any) -> None:
    run = engine_of(strategy=strategy).steps(QUESTIONS[0], sampling=SHORT)
    steps = list(run.rounds())
    result = run.result
    assert result.trace == tuple(steps)
    assert [s.kind == "commit" for s in steps] == [s.done for s in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].text == steps[-1].committed_text == result.text
    assert (steps[-1].score, steps[-1].log_likelihood) == (result.score, result.log_likelihood)
    assert sum(s.kind != "commit" for s in steps) == result.usage.rollouts
    assert all(later.committed_text.startswith(s.committed_text) for s, later in pairwise(steps))


def test_an_ended_run_stays_ended_and_its_result_does_not_change() -> None:
    run = engine_of().steps(QUESTIONS[0], sampling=SHORT)
    assert list(run)
    first = run.result
    time.sleep(0.01)
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(run)
    assert list(run) == []
    assert run.drain().usage.seconds == first.usage.seconds == first.trace[-1].usage.seconds
    assert (run.result.text, run.result.trace) == (first.text, first.trace)


def test_the_result_is_the_best_so_far_at_any_time() -> None:
    run = engine_of(reward=None).steps(QUESTIONS[0], sampling=SHORT)
    assert (run.result.text, run.result.token_ids, run.result.trace) == ("", (), ())
    assert run.result.usage.seconds == 0
    best = -float("inf")
    for count, step in enumerate(run, start=1):
        best = max(best, step.log_likelihood)
        assert run.result.log_likelihood == best
        assert len(run.result.trace) == count
    assert count > 2


def test_seconds_begin_with_the_first_operation() -> None:
    run = engine_of().steps(QUESTIONS[0], sampling=SHORT)
    time.sleep(0.3)
    started = time.perf_counter()
    result = run.drain()
    assert 0 < result.usage.seconds <= time.perf_counter() - started


# ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Waited(FixedReward):
    """One that a search which is stopped still waits for, as for a model."""

    @property
    def learned(self) -> bool:
        return True


def drained(engine: Engine, **options: Any) -> Result:
    return engine.steps(QUESTIONS[0], **options).drain()


def generated(engine: Engine, **options: Any) -> Result:
    return engine.generate(QUESTIONS[0], **options)


def batched(engine: Engine, **options: Any) -> Result:
    [result] = engine.generate_batch(QUESTIONS[:1], **options)
    return result


@pytest.mark.parametrize("way", [generated, drained, batched])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupt_returns_the_best_so_far(way: Callable[..., Result], call: int) -> None:
    """Of the rollouts before it; the run is otherwise that of the same seed."""
    whole = generated(engine_of(), sampling=SHORT)
    assert whole.usage.rollouts > 3
    before = [s for s in whole.trace if s.kind != "commit"][: call - 1]
    result = way(engine_of(rollouts=Hooked(interrupt_at(call))), sampling=SHORT)
    assert (result.finish_reason, result.detail) == (FinishReason.INTERRUPTED, "stopped by the caller")
    assert [s.text for s in result.trace] == [*(s.text for s in before), result.text]
    assert result.trace[-1].kind == "commit"
    assert result.usage.rollouts == len(before)
    assert result.text == next((s.text for s in reversed(before) if s.accepted), "")


@pytest.mark.parametrize("way", [generated, drained, batched])
def test_an_interrupt_within_a_reward_keeps_what_was_scored(way: Callable[..., Result]) -> None:
    seen: list[str] = []

    def judge(rollout: Rollout) -> float:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(rollout.text)
        return -float(len(seen))  # the first is the best

    result = way(engine_of(reward=FixedReward(judge), likelihood_weight=0.0), sampling=SHORT)
    assert result.finish_reason is FinishReason.INTERRUPTED
    assert result.score is not None
    assert (result.text, result.score.value) == (seen[0], -1.0)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("way", [generated, batched])
def test_an_interrupt_that_finds_everything_ended_is_raised(way: Callable[..., Result]) -> None:
    """Else a loop over questions would go on as if nobody had pressed anything."""

    def judge(rollout: Rollout) -> float:
        interrupt_main()
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        way(engine_of(reward=Waited(judge), strategy=Greedy()), sampling=SHORT)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_batch_gives_every_prompt_what_it_has() -> None:
    """Three run together, so each has one rollout when the second operation is interrupted; the rest has none."""

    def press(call: int) -> None:
        if call == 2:
            interrupt_main()
            time.sleep(0.3)  # its rollouts come too late

    engine = engine_of(rollouts=Hooked(press))
    results = engine.generate_batch([*QUESTIONS, *QUESTIONS], sampling=SHORT, max_batch=3)
    assert {r.finish_reason for r in results} == {FinishReason.INTERRUPTED}
    assert [r.usage.rollouts for r in results] == [1, 1, 1, 0, 0, 0]
    assert [len(r.trace) for r in results] == [2, 2, 2, 1, 1, 1]
    first = engine_of(budget=Budget(rollouts=1)).generate_batch(QUESTIONS, sampling=SHORT)
    assert [r.text for r in results] == [*(r.text for r in first), "", "", ""]


def test_searches_that_ended_before_an_interrupt_keep_their_reason() -> None:
    engine = engine_of(rollouts=Hooked(interrupt_at(3)), strategy=Greedy())
    results = engine.generate_batch(QUESTIONS, sampling=SHORT, max_batch=1)
    reasons = [r.finish_reason is FinishReason.INTERRUPTED for r in results]
    assert reasons == [False, False, True]


class Dawdling:
    """Greedy, after a pause in which it waits for nothing of the engine."""

    rule = "objective"

    def __init__(self) -> None:
        self.waiting, self.go_on = threading.Event(), threading.Event()

    async def steps(self, search: Any) -> AsyncIterator[Any]:
        if search.seed == 0:
            self.waiting.set()
            assert self.go_on.wait(20)
        async for step in Greedy().steps(search):
            yield step

    def select(self, pool: Any) -> Any:
        return pool.best()


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_while_a_batch_waits_for_a_slow_search_ends_it() -> None:
    strategy = Dawdling()

    def press() -> None:
        assert strategy.waiting.wait(20)
        interrupt_main()
        time.sleep(1.0)  # for the main thread to hear of it, on a machine that is busy
        strategy.go_on.set()

    finger = threading.Thread(target=press)
    finger.start()
    results = engine_of(strategy=strategy).generate_batch(QUESTIONS, sampling=SHORT)
    finger.join(20)
    assert [r.finish_reason for r in results] == [FinishReason.INTERRUPTED] * 3
    assert [r.usage.rollouts for r in results] == [0, 0, 0]


def test_cancel_before_the_first_step_computes_nothing() -> None:
    backend = Hooked(lambda _: None)
    run = engine_of(rollouts=backend).steps(QUESTIONS[0], sampling=SHORT)
    run.cancel()
    [step] = run
    assert step.kind == "commit"
    assert (run.result.finish_reason, run.result.text, run.result.usage.rollouts) == (FinishReason.INTERRUPTED, "", 0)
    assert backend.calls == 0


@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_is_finished_when_a_run_is_cancelled_is_judged_and_kept(call: int) -> None:
    runs: list[Run] = []

    def cancel(calls: int) -> None:
        if calls == call:
            thread = threading.Thread(target=runs[0].cancel)
            thread.start()
            thread.join(20)

    scored: list[str] = []
    reward = FixedReward(lambda r: float(scored.append(r.text) or 0))
    backend = Hooked(cancel)
    runs.append(engine_of(rollouts=backend, reward=reward).steps(QUESTIONS[0], sampling=SHORT))
    steps = list(runs[0])
    assert backend.calls == call
    assert len(scored) == call
    assert [s.kind for s in steps] == [*(["rollout", "refine", "refine"][:call]), "commit"]
    assert runs[0].result.finish_reason is FinishReason.INTERRUPTED
    assert steps[-1].text in scored


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole() -> Result:
    return engine_of().generate(QUESTIONS[0], sampling=SHORT)


@pytest.mark.parametrize("name", ["rollouts", "generated_tokens", "gradient_passes", "reward_calls", "flops"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.8])
def test_a_limit_ends_the_search_with_its_name_and_both_numbers(name: str, share: float) -> None:
    """At most one operation over: the ledger was below the limit after the last operation but one."""
    spent = getattr(whole().usage, name)
    limit = share * spent if name == "flops" else max(int(share * spent), int(name in ("rollouts", "generated_tokens")))
    result = engine_of(budget=Budget(**{"rollouts": None, name: limit})).generate(QUESTIONS[0], sampling=SHORT)
    used = getattr(result.usage, name)
    assert result.finish_reason is FinishReason.BUDGET
    shown = f"{used:g}/{limit:g}" if name == "flops" else f"{used}/{limit}"
    assert result.detail.startswith(f"{name} {shown}")
    if name != "flops":
        assert used == limit
        return
    steps = [s.usage.flops for s in result.trace if s.kind != "commit"]
    assert used >= limit
    assert (used == 0) == (limit == 0)
    assert all(flops < limit for flops in steps[:-1])
    assert steps == [] or steps[-1] < limit or steps[-1] == used  # a rollout over it is followed by no gradient pass


@pytest.mark.parametrize("limit", [0.0, 0.05])
def test_seconds_end_a_search_after_the_operation_they_run_out_in(limit: float) -> None:
    backend = Hooked(lambda _: time.sleep(0.06))
    result = engine_of(rollouts=backend, budget=Budget(seconds=limit)).generate(QUESTIONS[0], sampling=SHORT)
    assert backend.calls == (1 if limit else 0)
    assert result.finish_reason is FinishReason.BUDGET
    name, numbers = result.detail.split()
    spent, allowed = numbers.split("/")
    assert (name, float(allowed)) == ("seconds", limit)
    assert limit <= float(spent) <= result.usage.seconds * 1.001


def test_fewer_completions_than_asked_for_is_a_spent_budget_and_not_a_stop() -> None:
    engine = engine_of(strategy=BestOfN(n=5))
    result = engine.generate(QUESTIONS[0], sampling=SHORT, budget=Budget(rollouts=2))
    assert (result.usage.rollouts, result.finish_reason, result.detail) == (2, FinishReason.BUDGET, "rollouts 2/2")
    exact = engine.generate(QUESTIONS[0], sampling=SHORT, budget=Budget(rollouts=5))
    assert (exact.usage.rollouts, exact.finish_reason) == (5, FinishReason.STOP)


def test_tokens_of_the_budget_cut_a_completion() -> None:
    long = engine_of(strategy=Greedy(), reward=None).generate("1\n1", sampling=Sampling(max_tokens=6))
    assert len(long.token_ids) > 2
    cut = engine_of(strategy=Greedy(), reward=None).generate("1\n1", budget=Budget(generated_tokens=2))
    assert cut.token_ids == long.token_ids[:2]
    assert (cut.finish_reason, cut.detail, cut.truncated) == (FinishReason.BUDGET, "generated_tokens 2/2", True)


def test_a_run_says_what_it_is_at() -> None:
    seen: list[tuple[str, int]] = []

    def judge(rollout: Rollout) -> float:
        now = run.doing
        assert now is not None
        seen.append((now.what, now.answers))
        return 1.0

    run = engine_of(reward=FixedReward(judge), strategy=BestOfN(n=3)).steps("12", sampling=SHORT)
    run.drain()
    assert seen == [("judging", 3)] * 3
    assert run.doing is None
