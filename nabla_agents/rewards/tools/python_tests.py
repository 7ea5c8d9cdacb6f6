"""PythonTests: whether the function in a completion does what it must, tried in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from nabla_agents.errors import ConfigurationError, SandboxError
from nabla_agents.rewards.base import Reward
from nabla_agents.rewards.remark import remark
from nabla_agents.rewards.tools import executors
from nabla_agents.rewards.tools.code import line_span, python_code
from nabla_agents.rewards.tools.failure import at_line
from nabla_agents.rewards.tools.script import Script
from nabla_agents.rewards.tools.text import not_text
from nabla_agents.rewards.tools.trial import Trial, Tried, lacks_standard_module, run
from nabla_agents.rewards.tools.unit_tests import Calls, unit_tests
from nabla_agents.sandbox import Executor, Limits
from nabla_agents.types import Rollout, Score, Span, Usage

Tests = Sequence[tuple[Sequence[Any], Any]] | str


class PythonTests(Reward):
    """Value in [0, 1]: the share of tests that the completion's function passes; verified when it passes all, and all
    were compared outside the sandbox.

    tests: pairs (arguments, expected) for calls of `entry`; or Python source with assertions, functions `test_…()` or
        `check(candidate)`; or a function that gives either for a rollout (None: not known, not judged).
    entry: the function's name; needed for pairs and for `check(candidate)`.
    executor: the sandbox; by default one that all rewards share, started by the first verdict.
    limits: of one run; a test that exceeds them fails.
    credit: nats in the objective's gradient against the line that raised.

    `feedback` quotes the first test that failed: `.silent()` is for tests that the model must not see.

    The function is taken from the last fenced block of Python that defines it, or from a bare text. Of pairs, only the
    arguments enter the sandbox, as JSON (tuples arrive as lists): results come back as JSON and are compared here
    (`unit_tests.equal`: 3 is 3.0, floats within 1e-9, True is not 1, tuples are lists).

    Source runs behind the program, statement by statement, but what an assertion compares with stays here: of `assert
    EXPR == LITERAL` only EXPR is evaluated there, and its value comes back as data, tuples, sets and keys included. So
    it is with `in`, `<` and their like, `is None`, `assert f(1)` and `assert not f(1)`, where the other side is a call
    of the program's own, and with conditions over such calls: `f(1) == f(2)`, `abs(f(1) - 2) < 1e-9`,
    `math.isclose(f(1), 2.0)`, `1 < f(1) < 3`. An object that is no data is equal to no literal, whatever its `__eq__`
    says.

    All other assertions run beside the program, with Python's own builtins: what `and`, `or` and `if` decide,
    `isinstance`, loops, functions that assert, objects of the program's own. It could see and cheat them all the same;
    so when all tests pass and one of these is among them, the pass is only claimed (value 1, `verified` None), and not
    verified (True). One that fails is wrong (False).

    One run for all tests, and one more for each from the first on that leaves or raises past them, or does not fit into
    `value_bytes` or `output_bytes` together with those before it. After a run that meets the limit of time, and after a
    run of all tests that meets any other, all later tests fail, untried. All runs of one program together have four
    times `limits.wall_seconds`: what is not tried then counts as not passed, and makes a program that has passed all
    before NaN. Milliseconds each; no model pass. An answer that needs a package which the sandbox lacks is wrong; of a
    part of Python that it lacks, the value is low and `verified` None. A sandbox that is broken, or lacks what the
    tests themselves import, is an explained NaN.

    Raises:
        ConfigurationError: when made: no tests, no identifier, values that are not JSON, or too long for `limits`.
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
        trials = [p for p in prepared if isinstance(p, Trial)]
        try:
            executor = executors.programs() if self._executor is None and trials else self._executor
            if executor is not None:
                run(trials, executor, self.limits)
        except SandboxError as e:
            return [_not_judged(str(e))] * len(rollouts)
        return [self._verdict(p) if isinstance(p, Trial) else p for p in prepared]

    def _prepare(self, rollout: Rollout) -> Trial | Score:
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
        code = python_code(rollout.text, tests.entry if isinstance(tests, Calls) else tests.function)
        if code is None:
            explanation, feedback = "no Python in the completion", "There is no Python code in the answer."
            return Score(0.0, 0.0, False, explanation=explanation, usage=Usage(reward_calls=1), feedback=feedback)
        return Trial(code, tests)

    def _verdict(self, trial: Trial) -> Score:
        unjudged = trial.lacking()
        if unjudged is not None:
            return _not_judged(f"sandbox {unjudged.status}: {unjudged.error_message or unjudged.detail}")
        passed = sum(t.passed for t in trial.results)
        failed = next((t for t in trial.results if not t.passed), None)
        outside = all(t.outside for t in trial.results) and (isinstance(trial.tests, Calls) or trial.tests.outside)
        parts = [f"{passed} of {trial.count} tests passed", failed.explanation if failed else "", trial.untried]
        if failed is None and trial.untried:
            return _not_judged("; ".join(filter(None, parts)))
        if failed is None and not outside:
            parts.append("assertions ran beside the program, which could have cheated them: not verified")
        value = passed / trial.count
        return Score(
            value=value,
            verdict=value,
            verified=_refuted(failed) if failed else True if outside else None,
            spans=self._spans(trial, failed),
            explanation="; ".join(filter(None, parts)),
            usage=Usage(reward_calls=1),
            feedback="" if failed is None else _feedback(trial, passed, failed),
        )

    def _spans(self, trial: Trial, failed: Tried | None) -> tuple[Span, ...]:
        place = None if failed is None else line_span(trial.code, failed.line)
        if place is None or failed is None:
            return ()
        return (Span(*place, -1.0, explanation=failed.explanation, credit=self.credit),)


def _refuted(failed: Tried) -> bool | None:
    """False: the tests say that it is wrong. None: it needs a part of the standard library that the sandbox lacks."""
    return None if lacks_standard_module(failed.execution) else False


def _feedback(trial: Trial, passed: int, failed: Tried) -> str:
    """The first test that failed: what was called, what came of it, what was expected."""
    what = f"{failed.feedback or failed.explanation}{at_line(trial.code, failed.line)}"
    return remark(f"{passed} of {trial.count} tests passed. {what}.")


def _fitting(tests: Calls | Script, limits: Limits) -> Calls | Script:
    """The tests, if they can be sent, and a right function's values can come back."""
    if isinstance(tests, Script) and (size := len(tests.around("").encode())) > limits.source_bytes:
        raise ConfigurationError(
            f"PythonTests got tests of {size} bytes as source, limits.source_bytes is {limits.source_bytes}; raise it."
        )
    for value in tests.expected if isinstance(tests, Calls) else ():
        if (size := len(json.dumps(value))) > limits.value_bytes:
            raise ConfigurationError(
                f"A test expects a value of {size} bytes as JSON, limits.value_bytes is {limits.value_bytes}; raise it."
            )
    return tests


def _not_judged(explanation: str) -> Score:
    return Score.not_judged(explanation, Usage(reward_calls=1))
