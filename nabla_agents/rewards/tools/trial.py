"""A completion's code with its tests: which runs it needs, and what each of them says."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nabla_agents.rewards.remark import quoted, shortened
from nabla_agents.rewards.tools.failure import failure
from nabla_agents.rewards.tools.fences import Fenced
from nabla_agents.rewards.tools.script import ENTRY, Script, judged_check
from nabla_agents.rewards.tools.unit_tests import Calls, equal
from nabla_agents.sandbox import Execution, Executor, Limits, Program, Status

SIDE_BY_SIDE = 4  # runs of one program at a time, after a first one has shown that it ends
ALL_RUNS = 4  # times the wall clock of one run, for all runs of one program


@dataclass(frozen=True)
class Tried:
    """One test: whether it passed, the run it was part of, what went wrong, and in which line of the code.

    `outside`: its result was compared in the host. `feedback`: what went wrong, in words for a model.
    """

    passed: bool
    execution: Execution
    explanation: str
    line: int | None = None
    outside: bool = True
    feedback: str = ""


class Trial:
    """A completion's code with its tests, and their results as they come in.

    `untried` says why the last tests have no result, if they have none.
    """

    def __init__(self, code: Fenced, tests: Calls | Script) -> None:
        self.code, self.tests, self.count = code, tests, tests.count
        self.untried = ""
        self._results: dict[int, Tried] = {}
        self._beside: set[int] = set()  # assertions that can only be tried beside the program
        self._seconds = 0.0

    @property
    def results(self) -> list[Tried]:
        """In the order of the tests."""
        return [self._results[i] for i in sorted(self._results)]

    def whole(self) -> Program:
        """One program with all tests."""
        return self._program(range(self.count))

    def take_whole(self, execution: Execution) -> None:
        """The results that follow from one run of all tests."""
        self._seconds += execution.wall_seconds
        judges, single = execution.status.judges, self.count == 1
        if judges and not single and self._unclear(execution):
            return  # which call it was, each shows alone
        if judges and not single:
            fine = Execution(Status.OK, values=execution.values)
            for i, value in enumerate(execution.values[: self.count]):
                self._note(i, fine, [value])
        # What is capped for all tests together says nothing of the others: each has that room alone. After any other
        # limit, each of the others could take as long again.
        alone = (Status.ERROR, Status.UNSUPPORTED, Status.OUTPUT_LIMIT)
        if single or execution.status not in alone or self._undefined(execution):
            self._end(execution)

    def next(self) -> list[tuple[int, Program]]:
        """Tests with a program each: one at first, which may never end, then a few; none when all is known."""
        left = [] if self.untried else self._left()
        return [(i, self._program(range(i, i + 1))) for i in left[: SIDE_BY_SIDE if self._results else 1]]

    def take(self, executions: Sequence[tuple[int, Execution]], limits: Limits) -> None:
        """The results of these runs. One that met the limit of time is the last, and so is one that cannot judge."""
        for i, execution in executions:
            self._seconds += execution.wall_seconds
            self._note(i, execution, execution.values[:1])
        last = next((e for _, e in executions if e.status is Status.TIMEOUT or not e.status.judges), None)
        if last is not None:
            self._end(last)
        left = len(self._left())
        if left and self._seconds > ALL_RUNS * limits.wall_seconds:
            self.untried = f"{left} tests were not tried, because those before took {self._seconds:.1f} s"

    def lacking(self) -> Execution | None:
        """The run in which the sandbox was broken, or lacked what the tests themselves import."""
        own = isinstance(self.tests, Script)
        return next(
            (
                t.execution
                for t in self.results
                if not t.execution.status.judges
                or (own and t.execution.status is Status.UNSUPPORTED and t.execution.line is None)
            ),
            None,
        )

    def _left(self) -> list[int]:
        return [i for i in range(self.count) if i not in self._results]

    def _program(self, tests: range) -> Program:
        if isinstance(self.tests, Calls):
            return Program(
                self.code.flush, entry=self.tests.entry, calls=self.tests.arguments[tests.start : tests.stop]
            )
        source = self.tests.around(self.code.flush, frozenset(self._beside & {*tests}))
        return Program(source, entry=ENTRY, calls=[[i] for i in tests])

    def _undefined(self, execution: Execution) -> bool:
        """Whether the program itself failed, and not a test: those of a script report what they raise."""
        passed_on = ("SystemExit", "KeyboardInterrupt", "GeneratorExit")
        is_error = execution.status in (Status.ERROR, Status.UNSUPPORTED) and isinstance(self.tests, Script)
        return is_error and not execution.values and execution.error_type not in passed_on

    def _unclear(self, execution: Execution) -> bool:
        """Whether one of the values that were expected to be None is none."""
        wanted = self.tests.expected if isinstance(self.tests, Calls) else ()
        return "no JSON value" in execution.detail and None in wanted

    def _note(self, index: int, execution: Execution, values: Sequence[Any]) -> None:
        if isinstance(self.tests, Calls):
            self._results[index] = _called(self.tests, index, execution, values)
            return
        check = self.tests.checks[index]
        if not execution.ok or execution.detail == "exit" or not values:
            explanation = f"{check.statement[:80]}: {_ended(execution)}"
            feedback = f"{shortened(check.statement)} {failure(execution)}"
            self._results[index] = Tried(
                False, execution, explanation, execution.line, outside=False, feedback=feedback
            )
            return
        result = judged_check(check, values[0], beside=index in self._beside)
        if result.again:
            self._beside.add(index)
        else:
            self._results[index] = Tried(
                result.passed, execution, result.explanation, result.line, result.outside, result.feedback
            )

    def _end(self, execution: Execution) -> None:
        """What remains has the result of this run, but for what is tried anew after a run that ended well."""
        for i in self._left():
            if i not in self._beside or not execution.ok:
                self._note(i, execution, execution.values[i : i + 1])


def run(trials: Sequence[Trial], executor: Executor, limits: Limits) -> None:
    """Runs everything: all tests of a program at once, then what is left test by test, all programs side by side."""
    done = executor.run_many([trial.whole() for trial in trials], limits) if trials else []
    for trial, execution in zip(trials, done, strict=True):
        trial.take_whole(execution)
    while wave := [(trial, programs) for trial in trials if (programs := trial.next())]:
        executions = iter(executor.run_many([p for _, programs in wave for _, p in programs], limits))
        for trial, programs in wave:
            trial.take([(i, next(executions)) for i, _ in programs], limits)


def lacks_standard_module(execution: Execution) -> bool:
    """Whether the program needs a part of the standard library that this sandbox lacks; packages it must do without."""
    missing = re.match(r"No module named '(\w+)", execution.error_message)
    return execution.status is Status.UNSUPPORTED and missing is not None and missing[1] in sys.stdlib_module_names


def _called(tests: Calls, index: int, execution: Execution, values: Sequence[Any]) -> Tried:
    arguments = ", ".join(map(repr, tests.arguments[index]))
    call, longer = f"{tests.entry}({arguments[:80]})", f"{tests.entry}({shortened(arguments)})"
    if not execution.ok or execution.detail == "exit" or not values:
        explanation = f"{call}: {_ended(execution)}"
        return Tried(False, execution, explanation, execution.line, feedback=f"{longer} {failure(execution)}")
    if equal(tests.expected[index], values[0]) and "no JSON value" not in execution.detail:
        return Tried(True, execution, "")
    expected = repr(tests.expected[index])[:80]
    returned = "None, or what is no JSON" if values[0] is None else quoted(values[0])
    feedback = f"{longer} returned {returned}, expected {quoted(tests.expected[index])}"
    return Tried(False, execution, f"{call} gave {repr(values[0])[:80]}, expected {expected}", feedback=feedback)


def _ended(execution: Execution) -> str:
    reason = f"{execution.error_type} {execution.error_message}".strip() or execution.detail
    line = f" in line {execution.line}" if execution.line else ""
    return f"{execution.status} {reason[:200]}".strip() + line
