"""A completion's code with its tests: which runs it needs, and what each of them says."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents.rewards.tools.fences import Fenced
from nabla_agents.rewards.tools.unit_tests import Assertions, Calls, equal
from nabla_agents.sandbox import Execution, Executor, Limits, Program, Status

SIDE_BY_SIDE = 4  # runs of one program at a time, after a first one has shown that it ends
ALL_RUNS = 4  # times the wall clock of one run, for all runs of one program


@dataclass(frozen=True)
class Tried:
    """One test: whether it passed, the run it was part of, and what went wrong."""

    passed: bool
    execution: Execution
    said: str


class Trial:
    """A completion's code with its tests, and their results as they come in, in order.

    `untried` says why the last tests have no result, if they have none.
    """

    def __init__(self, code: Fenced, tests: Calls | Assertions) -> None:
        self.code, self.tests = code, tests
        self.results: list[Tried] = []
        self.untried = ""
        self._marker = secrets.token_hex(16)
        self._seconds = 0.0

    @property
    def count(self) -> int:
        """Of its tests."""
        return len(self.tests.arguments if isinstance(self.tests, Calls) else self.tests.checks)

    def whole(self) -> list[Program]:
        """One program with all calls; none for assertions, which have a run each."""
        return [self._calls(self.tests, 0, self.count)] if isinstance(self.tests, Calls) else []

    def take_whole(self, execution: Execution) -> None:
        """The results that follow from one run of all calls."""
        assert isinstance(self.tests, Calls)
        self._seconds += execution.wall_seconds
        judges, single = execution.status.judges, self.count == 1
        if judges and not single and "no JSON value" in execution.detail and None in self.tests.expected:
            return  # which call it was, each shows alone
        if judges and not single:
            fine = Execution(Status.OK, values=execution.values)
            values = execution.values[: self.count]
            self.results += [self._result(i, fine, [value]) for i, value in enumerate(values)]
        # What is capped for all calls together says nothing of the others: each has that room alone. After any other
        # limit, each of the others could take as long again.
        if single or execution.status not in (Status.ERROR, Status.OUTPUT_LIMIT):
            self._end(execution)

    def next(self) -> list[Program]:
        """Programs with the next test each: one at first, which may never end, then a few; none when all is known."""
        first = len(self.results)
        last = first if self.untried else min(self.count, first + (SIDE_BY_SIDE if first else 1))
        return [self._single(index) for index in range(first, last)]

    def take(self, executions: Sequence[Execution], limits: Limits) -> None:
        """The results of these runs. One that met the limit of time is the last, and so is one that cannot judge."""
        for execution in executions:
            self._seconds += execution.wall_seconds
            self.results.append(self._result(len(self.results), execution, execution.values[:1]))
        last = next((e for e in executions if e.status is Status.TIMEOUT or not e.status.judges), None)
        if last is not None:
            self._end(last)
        left = self.count - len(self.results)
        if left and self._seconds > ALL_RUNS * limits.wall_seconds:
            self.untried = f"{left} tests were not tried, because those before took {self._seconds:.1f} s"

    def _calls(self, tests: Calls, first: int, last: int) -> Program:
        return Program(self.code.flush, entry=tests.entry, calls=tests.arguments[first:last])

    def _single(self, index: int) -> Program:
        if isinstance(self.tests, Calls):
            return self._calls(self.tests, index, index + 1)
        lines = (self.code.flush, self.tests.setup, self.tests.checks[index], f"print({self._marker!r})")
        return Program("\n".join(lines))

    def _result(self, index: int, execution: Execution, values: Sequence[Any]) -> Tried:
        if isinstance(self.tests, Calls):
            return _called(self.tests, index, execution, values)
        return _asserted(execution, self._marker)

    def _end(self, execution: Execution) -> None:
        """What remains has the result of this run."""
        rest = range(len(self.results), self.count)
        self.results += [self._result(index, execution, execution.values[index : index + 1]) for index in rest]


def run(trials: Sequence[Trial], executor: Executor, limits: Limits) -> None:
    """Runs everything: all calls of a program at once, then what is left test by test, all programs side by side."""
    wholes = [(trial, program) for trial in trials for program in trial.whole()]
    done = executor.run_many([program for _, program in wholes], limits) if wholes else []
    for (trial, _), execution in zip(wholes, done, strict=True):
        trial.take_whole(execution)
    while wave := [(trial, programs) for trial in trials if (programs := trial.next())]:
        executions = iter(executor.run_many([program for _, programs in wave for program in programs], limits))
        for trial, programs in wave:
            trial.take([next(executions) for _ in programs], limits)


def _called(tests: Calls, index: int, execution: Execution, values: Sequence[Any]) -> Tried:
    arguments = ", ".join(map(repr, tests.arguments[index]))
    call = f"{tests.entry}({arguments[:80]})"
    if not execution.ok or execution.detail == "exit" or not values:
        return Tried(False, execution, f"{call}: {_ended(execution)}")
    passed = equal(tests.expected[index], values[0]) and "no JSON value" not in execution.detail
    expected = repr(tests.expected[index])[:80]
    return Tried(passed, execution, "" if passed else f"{call} gave {repr(values[0])[:80]}, expected {expected}")


def _asserted(execution: Execution, marker: str) -> Tried:
    ended = execution.ok and execution.detail != "exit"
    passed = ended and execution.stdout.rstrip("\n").endswith(marker)
    return Tried(passed, execution, "" if passed else f"an assertion: {_ended(execution)}")


def _ended(execution: Execution) -> str:
    reason = f"{execution.error_type} {execution.error_message}".strip() or execution.detail
    line = f" in line {execution.line}" if execution.line else ""
    return f"{execution.status} {reason[:200]}".strip() + line
