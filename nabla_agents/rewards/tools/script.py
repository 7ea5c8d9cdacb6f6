"""Tests that run behind a program: what they send of it, and what the host makes of that."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nabla_agents.rewards.tools.values import DATA, Unreadable, read

ENTRY = "_nabla_test"
# Runs after the program, in the same interpreter: whatever it returns is a claim. Tests share their state, in order.
_HARNESS = """
def {entry}(last, tests={tests!r}, done=[]):
{data}
    def line_of(error):
        line, traceback = None, error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == "<program>" and traceback.tb_lineno <= {lines}:
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        return line

    space = globals()
    while len(done) <= last:
        before, expression, statement = tests[len(done)]
        done.append(0)
        try:
            exec(compile(before, "<tests>", "exec"), space)
            if expression:
                result = data(eval(compile(expression, "<tests>", "eval"), space))
            else:
                exec(compile(statement, "<tests>", "exec"), space)
                result = ["held"]
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            result = ["raised", type(error).__name__[:200], str(error)[:200], line_of(error)]
    return result
"""


@dataclass(frozen=True)
class Check:
    """One test: the statements before it, and what must hold.

    `expression`: what the program's interpreter evaluates and sends as data, to be held against `expected` by `holds`;
        empty where that cannot be told apart from the comparison, so that all of `statement` runs there.
    """

    before: str
    statement: str
    expression: str = ""
    symbol: str = ""
    expected: Any = None
    holds: Callable[[Any, Any], bool] = operator.eq


@dataclass(frozen=True)
class Script:
    """Tests from source, in their order. `outside`: no statement between them could be a check of its own.

    `function` is the name that the first of them asks of the program.
    """

    checks: tuple[Check, ...]
    outside: bool
    function: str | None

    @property
    def count(self) -> int:
        return len(self.checks)

    def appended(self, code: str, beside: frozenset[int] = frozenset()) -> str:
        """The code with the tests behind it; those in `beside` run there whole, with what they compare with."""
        tests = [
            (c.before, "" if i in beside else c.expression, c.statement if i in beside or not c.expression else "")
            for i, c in enumerate(self.checks)
        ]
        return code + "\n" + _HARNESS.format(entry=ENTRY, tests=tests, data=DATA, lines=code.count("\n") + 1)


@dataclass(frozen=True)
class Said:
    """What came of one test. `outside`: it was compared here. `again`: its value is no data; only beside can it be."""

    passed: bool
    outside: bool = False
    why: str = ""
    line: int | None = None
    again: bool = False


def judged_check(check: Check, claim: Any, *, beside: bool) -> Said:
    """The verdict on what the program's interpreter sent for a test."""
    match claim:
        case ["raised", str(kind), str(message), None | int() as line]:
            what = check.expression or check.statement
            return Said(False, why=f"{what[:80]}: error {kind} {message}".strip(), line=line)
        case ["held"] if beside or not check.expression:
            return Said(True)
        case ["opaque", str(kind)] if not beside and check.expression:
            return Said(False, again=True, why=f"{check.expression[:80]} gave an object of type {kind}")
        case _ if beside or not check.expression:
            return Said(False, why=f"{check.statement[:80]}: no valid report")
    try:
        value = read(claim)
    except Unreadable:
        return Said(False, why=f"{check.expression[:80]}: no valid report")
    try:
        passed = bool(check.holds(value, check.expected))
    except TypeError:  # of another kind than what it is compared with
        passed = False
    expected = f"{check.symbol} {check.expected!r}".strip()[:80]
    return Said(passed, True, "" if passed else f"{check.expression[:80]} gave {value!r:.80}, expected {expected}")
