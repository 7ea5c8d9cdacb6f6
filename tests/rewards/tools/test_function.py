"""`@reward`: what a plain function is given, what its answers mean, and that a broken or hanging one stalls nothing."""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from nabla_agents import ConfigurationError, FunctionReward, Prompt, Reward, RewardError, Rollout, Score, Usage, reward
from nabla_agents.rewards.base import judged

ROLLOUTS = [Rollout.from_text("how many?", text) for text in ("a", "bb", "ccc")]


def values(tool: Reward) -> list[float]:
    return [s.value for s in tool.score(ROLLOUTS)]


class Callable_:
    def __call__(self, completion: str) -> int:
        return len(completion)

    def method(self, text: str) -> int:
        return len(text)


def by_text(x: str) -> int:
    return len(x)


def by_question(question: str, completion: str) -> int:
    return 10 * len(question) + len(completion)


def by_prompt(prompt: str, response: str) -> int:
    return by_question(prompt, response)


def by_prompt_record(prompt: Prompt, answer: str) -> int:
    return by_question(prompt.question, answer)


def by_rollout(rollout):  # type: ignore[no-untyped-def]
    return by_question(rollout.prompt.question, rollout.text)


def by_annotation(r: Rollout) -> int:
    return by_rollout(r)


def positional(completion, /, question, *, factor=1):  # type: ignore[no-untyped-def]
    return factor * by_question(question, completion)


async def later(completion: str) -> int:
    await asyncio.sleep(0.001)
    return len(completion)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (by_text, [1, 2, 3]),
        (len, [1, 2, 3]),
        (lambda anything: len(anything), [1, 2, 3]),
        (Callable_(), [1, 2, 3]),
        (Callable_().method, [1, 2, 3]),
        (partial(by_question, question="??"), [21, 22, 23]),
        (later, [1, 2, 3]),
        (by_question, [91, 92, 93]),
        (by_prompt, [91, 92, 93]),
        (by_prompt_record, [91, 92, 93]),
        (by_rollout, [91, 92, 93]),
        (by_annotation, [91, 92, 93]),
        (positional, [91, 92, 93]),
    ],
)
def test_a_function_is_given_what_its_parameters_ask_for(function: Callable[..., Any], expected: list[int]) -> None:
    assert values(reward(function)) == expected


@pytest.mark.parametrize(
    ("answer", "value", "verdict", "verified"),
    [
        (True, 1.0, 1.0, True),
        (False, 0.0, 0.0, False),
        (np.bool_(True), 1.0, 1.0, True),
        (0.25, 0.25, None, None),
        (3, 3.0, None, None),
        (np.float32(0.5), 0.5, None, None),
        (Fraction(1, 4), 0.25, None, None),
    ],
)
def test_answers_and_what_they_mean(answer: Any, value: float, verdict: float | None, verified: bool | None) -> None:
    [score] = reward(lambda text: answer).score(ROLLOUTS[:1])
    assert (score.value, score.verdict, score.verified) == (value, verdict, verified)
    assert score.usage == Usage(reward_calls=1)


def test_a_score_is_taken_as_it_is() -> None:
    given = Score(0.5, 0.25, False, explanation="so so")
    assert reward(lambda text: given).score(ROLLOUTS[:1]) == [given]


@pytest.mark.parametrize("answer", [None, math.nan, np.float64("nan"), math.inf, np.float32("-inf")])
def test_none_and_what_is_not_finite_are_no_judgement(answer: Any) -> None:
    [score] = reward(name="tool")(lambda text: answer).score(ROLLOUTS[:1])
    assert not score.judged
    assert score.explanation.startswith("tool returned")


@pytest.mark.parametrize(
    "answer", ["yes", [1.0], {"score": 1}, np.array([1.0, 2.0]), 10**400, 1j, Decimal(1), b"1", object]
)
def test_another_answer_is_an_error_and_no_nan(answer: Any) -> None:
    with pytest.raises(RewardError, match="expected a bool, a number, a Score or None"):
        judged(reward(lambda text: answer), ROLLOUTS)


@pytest.mark.parametrize("error", [ValueError("odd"), TimeoutError("odd"), RewardError("odd"), RecursionError("odd")])
def test_one_that_raises_is_an_explained_nan_and_the_others_are_judged(error: Exception) -> None:
    @reward
    def picky(completion: str) -> float:
        if completion == "bb":
            raise error
        return 1.0

    scores = judged(picky, ROLLOUTS)
    assert [s.judged for s in scores] == [True, False, True]
    assert scores[1].explanation == f"picky raised {type(error).__name__}: odd"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), GeneratorExit(), Mute()])
def test_one_that_leaves_ends_nothing_but_its_call(error: BaseException) -> None:
    @reward
    def leaving(completion: str) -> float:
        raise error

    @reward
    async def leaving_later(completion: str) -> float:
        raise error

    for tool in (leaving, leaving_later):
        scores = tool.score(ROLLOUTS)
        assert [s.judged for s in scores] == [False] * 3
        assert f"raised {type(error).__name__}" in scores[0].explanation


def test_an_interrupt_is_no_verdict() -> None:
    def interrupted(completion: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reward(interrupted).score(ROLLOUTS)


def test_one_that_hangs_is_reported_and_stalls_neither_the_batch_nor_the_next() -> None:
    released = threading.Event()

    @reward(timeout_seconds=0.3)
    def stuck(completion: str) -> bool:
        if completion == "bb":
            released.wait(60)
        return True

    started = time.perf_counter()
    scores = stuck.score(ROLLOUTS)
    assert time.perf_counter() - started < 5
    assert [s.judged for s in scores] == [True, False, True]
    assert scores[1].explanation == "stuck took longer than 0.3 s"
    assert stuck.score(ROLLOUTS[:1])[0].verified is True
    released.set()


def test_a_hanging_coroutine_is_cancelled() -> None:
    cancelled = threading.Event()

    @reward(timeout_seconds=0.2)
    async def stuck(completion: str) -> bool:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return True

    assert "longer than 0.2 s" in stuck.score(ROLLOUTS[:1])[0].explanation
    assert cancelled.wait(10)


def test_one_that_always_hangs_is_no_longer_asked_and_later_is_again() -> None:
    released, calls = threading.Event(), []

    @reward(timeout_seconds=0.05, workers=40)
    def stuck(completion: str) -> bool:
        calls.append(completion)
        return released.wait(60)

    stuck.score([ROLLOUTS[0]] * 32)
    assert len(calls) == 32
    [score] = stuck.score(ROLLOUTS[:1])
    assert (score.judged, len(calls)) == (False, 32)
    assert "32 calls still hang" in score.explanation
    released.set()
    for _ in range(1000):
        if stuck.score(ROLLOUTS[:1])[0].judged:
            break
        time.sleep(0.01)
    assert stuck.score(ROLLOUTS[:1])[0].verified is True


@pytest.mark.parametrize(("workers", "limits"), [(1, 2), (2, 1), (8, 1), (40, 1)])
def test_a_batch_of_which_all_hang_takes_one_limit_and_not_one_for_every_few(workers: int, limits: int) -> None:
    released, calls = threading.Event(), []

    @reward(timeout_seconds=0.4, workers=workers)
    def stuck(completion: str) -> bool:
        calls.append(completion)
        return released.wait(60)

    started = time.perf_counter()
    scores = stuck.score([ROLLOUTS[0]] * 100)
    seconds = time.perf_counter() - started
    released.set()
    asked = max(2, workers)
    assert len(calls) == asked
    assert 0.4 * limits <= seconds < 0.4 * (limits + 2)
    assert "longer than 0.4 s" in scores[asked - 1].explanation
    assert [s.judged for s in scores] == [False] * 100
    assert f"{asked} calls still hang" in scores[99].explanation


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_hangs_costs_the_others_of_its_batch_nothing_but_time(workers: int) -> None:
    released = threading.Event()

    @reward(timeout_seconds=0.3, workers=workers)
    def stuck(completion: str) -> bool:
        return completion != "bb" or released.wait(60)

    scores = stuck.score([*ROLLOUTS, *ROLLOUTS[:1] * 20])
    released.set()
    assert [i for i, s in enumerate(scores) if not s.judged] == [1]


def test_a_worker_that_is_free_takes_the_next_call() -> None:
    """Nineteen quick calls pass by a slow one: in fixed groups of two, one of them would wait for it."""
    quick, last = [], threading.Event()

    @reward(timeout_seconds=30.0, workers=2)
    def mixed(completion: str) -> bool:
        if completion == "a":
            return last.wait(20)
        quick.append(completion)
        if len(quick) == 19:
            last.set()
        return True

    assert all(s.verified for s in mixed.score([ROLLOUTS[0], *[ROLLOUTS[1]] * 19]))


def test_calls_run_side_by_side_up_to_the_workers() -> None:
    """Three calls that wait for each other end only if all three run at once."""
    meeting = threading.Barrier(3)

    @reward(timeout_seconds=30.0, workers=3)
    def together(completion: str) -> bool:
        meeting.wait(20)
        return True

    assert [s.verified for s in together.score(ROLLOUTS)] == [True] * 3

    order: list[str] = []
    assert [s.value for s in FunctionReward(lambda t: order.append(t) or 1, workers=1).score(ROLLOUTS)] == [1, 1, 1]
    assert order == ["a", "bb", "ccc"]


def test_context_variables_reach_the_function() -> None:
    variable: contextvars.ContextVar[float] = contextvars.ContextVar("variable", default=0.0)
    variable.set(0.75)
    assert values(reward(lambda text: variable.get())) == [0.75] * 3


def test_it_can_be_scored_within_a_running_event_loop() -> None:
    async def caller() -> list[float]:
        return values(reward(later))

    assert asyncio.run(caller()) == [1, 2, 3]


def test_the_function_stays_callable_and_keeps_its_name() -> None:
    @reward(timeout_seconds=3.0)
    def short(completion: str) -> bool:
        """Whether it is short."""
        return len(completion) < 3

    assert short("ab") is True
    assert (short.name, short.__doc__, short.timeout_seconds) == ("short", "Whether it is short.", 3.0)
    assert (2.0 * short).name == "2 * short"
    assert [s.value for s in (2.0 * short).score(ROLLOUTS)] == [2.0, 2.0, 0.0]


def none() -> bool:
    return True


def unknown(completion: str, temperature: float) -> bool:
    return True


@pytest.mark.untyped
@pytest.mark.parametrize("function", [none, unknown, 3, "len", type])
def test_a_function_that_nothing_is_known_for_is_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError, match="@reward"):
        reward(function)


@pytest.mark.untyped
@pytest.mark.parametrize(
    "options",
    [
        *({"timeout_seconds": seconds} for seconds in (0, math.inf, math.nan, "5", None)),
        *({"workers": workers} for workers in (0, 1.5, "2")),
    ],
    ids=repr,
)
def test_limits_are_limits(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="@reward"):
        reward(**options)(by_text)


@pytest.mark.parametrize(
    ("answer", "value", "verified", "feedback"),
    [
        ((False, "name a source"), 0.0, False, "name a source"),
        ((True, ""), 1.0, True, ""),
        ((0.25, "too long\x1b[2J\ud800"), 0.25, None, "too long[2J"),
        ((Score(0.5, explanation="so so", feedback="old"), "new"), 0.5, None, "new"),
        (Score(0.5, feedback="old"), 0.5, None, "old"),
    ],
)
def test_a_function_returns_a_remark_beside_its_verdict(
    answer: Any, value: float, verified: bool | None, feedback: str
) -> None:
    [score] = reward(lambda text: answer).score(ROLLOUTS[:1])
    assert (score.value, score.verified, score.feedback) == (value, verified, feedback)


def test_a_remark_on_what_is_not_judged_is_not_made() -> None:
    [score] = reward(lambda text: (None, "no idea")).score(ROLLOUTS[:1])
    assert not score.judged
    assert score.feedback == ""


@pytest.mark.parametrize("answer", [("no", "remark"), (False, None), (False, b"remark"), (False,), (False, "a", "b")])
def test_a_pair_of_something_else_is_an_error(answer: Any) -> None:
    with pytest.raises(RewardError, match="or a pair of one of these and a remark"):
        judged(reward(lambda text: answer), ROLLOUTS)
