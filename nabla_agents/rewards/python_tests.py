"""PythonTests: whether the function in a completion does what it must, tried in a sandbox."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.rewards import executors
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.code import line_span, python_code
from nabla_agents.rewards.fences import Fenced
from nabla_agents.rewards.text import not_text
from nabla_agents.rewards.unit_tests import Assertions, Calls, equal, unit_tests
from nabla_agents.sandbox import Execution, Executor, Limits, Program, Status
from nabla_agents.types import Rollout, Score, Span, Usage

Tests = Sequence[tuple[Sequence[Any], Any]] | str


class PythonTests(Reward):
    """Value in [0, 1]: the share of tests that the completion's function passes; verified when all pass.

    tests: pairs (arguments, expected) for calls of `entry`; or Python source with assertions; or a function that gives
        either for a rollout (None: not known, not judged).
    entry: the function's name; needed for pairs.
    executor: the sandbox; by default one that all rewards share, started by the first verdict.
    limits: of one run; a test that exceeds them fails.
    credit: nats in the objective's gradient against the line that raised.

    The function is taken from the last fenced block of Python that defines it, or from a bare text. Of pairs, only the
    arguments enter the sandbox, as JSON (tuples arrive as lists): results come back as JSON and are compared here
    (`unit_tests.equal`: 3 is 3.0, floats within 1e-9, True is not 1, tuples are lists). So are assertions of the form
    `assert f(1) == 2`, if there are no others, and their arguments are JSON; the rest run beside the program, which
    could see and cheat them, and count as passed only if they come to a random end marker.

    One run for all calls, and one more for each from the first on that raises, or does not fit into `value_bytes` or
    `output_bytes` together with those before it; with the first that meets another limit, all later ones fail. One run
    per assertion. Milliseconds each; no model pass. A sandbox that lacks a module, or is broken, is an explained NaN.

    Raises:
        ConfigurationError: when made: no tests, no identifier, values that are not JSON, or longer than `value_bytes`.
    """

    def __init__(
        self,
        tests: Tests | Callable[[Rollout], Tests | None],
        *,
        entry: str | None = None,
        executor: Executor | None = None,
        limits: Limits = Limits(),
        credit: float = 10.0,
    ) -> None:
        if not 0 <= credit < float("inf"):
            raise ConfigurationError(f"PythonTests credit is {credit!r}; expected nats of at least 0.")
        fixed = None if callable(tests) else _fitting(unit_tests(tests, entry), limits)
        if callable(tests) and entry is not None:
            unit_tests([((), None)], entry)  # checks the name
        self._tests, self._fixed, self.entry = tests, fixed, entry
        self._executor, self.limits, self.credit = executor, limits, credit

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        prepared = [self._prepare(rollout) for rollout in rollouts]
        trials = [p for p in prepared if isinstance(p, _Trial)]
        try:
            executor = executors.programs() if self._executor is None and trials else self._executor
            if executor is not None:
                _try(trials, executor, self.limits)
        except SandboxError as e:
            return [_not_judged(str(e))] * len(rollouts)
        return [self._verdict(p) if isinstance(p, _Trial) else p for p in prepared]

    def _prepare(self, rollout: Rollout) -> _Trial | Score:
        tests = self._fixed
        if tests is None and callable(self._tests):
            try:
                given = self._tests(rollout)
                tests = None if given is None else _fitting(unit_tests(given, self.entry), self.limits)
            except Exception as e:  # the caller's function, and what it gave
                return _not_judged(f"no tests for this prompt: {type(e).__name__}: {e}")
        if tests is None:
            return _not_judged("no tests are known for this prompt")
        if not isinstance(rollout.text, str):
            return not_text(rollout.text)
        code = python_code(rollout.text, tests.entry if isinstance(tests, Calls) else self.entry)
        if code is None:
            return Score(0.0, 0.0, False, explanation="no Python in the completion", usage=Usage(reward_calls=1))
        return _Trial(code, tests, [])

    def _verdict(self, trial: _Trial) -> Score:
        unjudged = next((t.execution for t in trial.results if not t.execution.status.judges), None)
        if unjudged is not None:
            return _not_judged(f"sandbox {unjudged.status}: {unjudged.error_message or unjudged.detail}")
        passed = sum(t.passed for t in trial.results)
        value = passed / len(trial.results)
        failed = next((t for t in trial.results if not t.passed), None)
        place = None if failed is None else line_span(trial.code, failed.execution.line)
        explanation = f"{passed} of {len(trial.results)} tests passed"
        explanation += f"; {failed.said}" if failed else ""
        spans = (
            ()
            if place is None
            else (Span(*place, -1.0, explanation=failed.said if failed else "", credit=self.credit),)
        )
        return Score(value, value, failed is None, spans, explanation, Usage(reward_calls=1))


@dataclass(frozen=True)
class _Tried:
    """One test: whether it passed, the run it was part of, and what went wrong."""

    passed: bool
    execution: Execution
    said: str


@dataclass(frozen=True)
class _Trial:
    """A completion's code with its tests, and their results as they come in."""

    code: Fenced
    tests: Calls | Assertions
    results: list[_Tried]


def _fitting(tests: Calls | Assertions, limits: Limits) -> Calls | Assertions:
    """The tests, if a right function's values can come back."""
    for value in tests.expected if isinstance(tests, Calls) else ():
        if (size := len(json.dumps(value))) > limits.value_bytes:
            raise ConfigurationError(
                f"A test expects a value of {size} bytes as JSON, limits.value_bytes is {limits.value_bytes}; raise it."
            )
    return tests


def _try(trials: Sequence[_Trial], executor: Executor, limits: Limits) -> None:
    """Runs everything in two batches: all calls of a program at once, then, one by one, those after one that raised."""
    batches = [list(_programs(trial)) for trial in trials]
    done = iter(executor.run_many([program for batch in batches for program, _ in batch], limits))
    again: list[tuple[_Trial, int]] = []
    for trial, batch in zip(trials, batches, strict=True):
        for _, marker in batch:
            execution = next(done)
            if isinstance(trial.tests, Assertions):
                trial.results.append(_asserted(execution, marker))
            else:
                left = _compare(trial, trial.tests, execution)
                again += [(trial, index) for index in left]
    rest = executor.run_many([_single(trial, index) for trial, index in again], limits) if again else []
    for (trial, index), execution in zip(again, rest, strict=True):
        assert isinstance(trial.tests, Calls)
        trial.results.append(_called(trial.tests, index, execution, execution.values[:1]))


def _programs(trial: _Trial) -> Iterator[tuple[Program, str]]:
    if isinstance(trial.tests, Calls):
        yield Program(trial.code.flush, entry=trial.tests.entry, calls=trial.tests.arguments), ""
        return
    for check in trial.tests.checks:
        marker = secrets.token_hex(16)
        lines = (trial.code.flush, trial.tests.setup, check, f"print({marker!r})")
        yield Program("\n".join(lines)), marker


def _single(trial: _Trial, index: int) -> Program:
    assert isinstance(trial.tests, Calls)
    return Program(trial.code.flush, entry=trial.tests.entry, calls=[trial.tests.arguments[index]])


def _compare(trial: _Trial, tests: Calls, execution: Execution) -> range:
    """Judges the calls that are known from one run of all; the others, which come after one that raised, are left."""
    count = len(tests.arguments)
    blurred = "no JSON value" in execution.detail and None in tests.expected  # which call it was, each shows alone
    if not execution.status.judges or count == 1:
        trial.results.extend(_called(tests, i, execution, execution.values[i : i + 1]) for i in range(count))
        return range(0)
    if blurred:
        return range(count)
    known = min(len(execution.values), count)
    fine = Execution(Status.OK, values=execution.values)
    trial.results.extend(_called(tests, i, fine, execution.values[i : i + 1]) for i in range(known))
    # What is capped for all calls together says nothing of the others: each has that room alone.
    if execution.status in (Status.ERROR, Status.OUTPUT_LIMIT):
        return range(known, count)
    left = range(known, count)  # a limit: each of the others could take as long again
    trial.results.extend(_called(tests, i, execution, ()) for i in left)
    return range(0)


def _called(tests: Calls, index: int, execution: Execution, values: Sequence[Any]) -> _Tried:
    arguments = ", ".join(map(repr, tests.arguments[index]))
    call = f"{tests.entry}({arguments[:80]})"
    if not execution.ok or execution.detail == "exit" or not values:
        return _Tried(False, execution, f"{call}: {_ended(execution)}")
    passed = equal(tests.expected[index], values[0]) and "no JSON value" not in execution.detail
    expected = repr(tests.expected[index])[:80]
    return _Tried(passed, execution, "" if passed else f"{call} gave {repr(values[0])[:80]}, expected {expected}")


def _asserted(execution: Execution, marker: str) -> _Tried:
    ended = execution.ok and execution.detail != "exit"
    passed = ended and execution.stdout.rstrip("\n").endswith(marker)
    return _Tried(passed, execution, "" if passed else f"an assertion: {_ended(execution)}")


def _ended(execution: Execution) -> str:
    reason = f"{execution.error_type} {execution.error_message}".strip() or execution.detail
    line = f" in line {execution.line}" if execution.line else ""
    return f"{execution.status} {reason[:200]}".strip() + line


def _not_judged(explanation: str) -> Score:
    return Score.not_judged(explanation, Usage(reward_calls=1))
