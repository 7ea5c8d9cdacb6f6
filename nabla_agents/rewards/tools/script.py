"""Tests that run behind a program: what they send of it, and what the host makes of that."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nabla_agents.rewards.remark import quoted, shortened
from nabla_agents.rewards.tools.failure import raises
from nabla_agents.rewards.tools.values import DATA, Unreadable, read

ENTRY = "_nabla_test"
CONDITION = "that"  # the symbol of a check that is more than one comparison
# Runs the program, and behind it the tests in their order, with the builtins as they were before it: what the program
# defines of that name counts for itself alone, unless it is what the tests ask for. What tests bind, the program sees,
# too. Whatever comes back is a claim all the same: they share an interpreter.
_HARNESS = """
def run_program():
    exec(compile(code, "<program>", "exec", dont_inherit=True), space)

def see_program():
    for name, value in list(space.items()):
        own = name not in __builtins__ or name in subjects
        if own and name != "__builtins__" and seen.get(name, seen) is not value:
            view[name] = seen[name] = value

def show_program():
    for name, value in list(view.items()):
        if name != "__builtins__" and seen.get(name, seen) is not value:
            space[name] = seen[name] = value

def line_of(error):
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<program>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line

{data}
def test(before, expression, statement):
    try:
        see_program()
        exec(compile(before, "<tests>", "exec"), view)
        show_program()
        if expression:
            return data(eval(compile(expression, "<tests>", "eval"), view))
        exec(compile(statement, "<tests>", "exec"), view)
        return ["held"]
    except MemoryError:
        raise
    except Exception as error:
        line = line_of(error)
        if isinstance(error, ImportError) and line is None:
            raise  # the tests need what is not there
        return ["raised", type(error).__name__[:200], str(error)[:200], line]
    finally:
        show_program()

def {entry}(last):
    while len(done) <= last:
        done.append(0)
        result = test(*tests[len(done) - 1])
    return result

done, seen, view = [], {{}}, {{"__builtins__": __builtins__, "__name__": space["__name__"]}}
run_program()
space["{entry}"] = seen["{entry}"] = {entry}
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

    `function` is the name that the first of them asks of the program; `subjects` are all that may be its own although
    Python has something of that name, as in `assert sum(1, 2) == 3`.
    """

    checks: tuple[Check, ...]
    outside: bool
    function: str | None
    subjects: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        return len(self.checks)

    def around(self, code: str, beside: frozenset[int] = frozenset()) -> str:
        """A program that runs the code, and then its tests; those in `beside` whole, with what they compare with."""
        tests = [
            (c.before, "" if i in beside else c.expression, c.statement if i in beside or not c.expression else "")
            for i, c in enumerate(self.checks)
        ]
        facts = f'"code": {code!r}, "tests": {tests!r}, "subjects": {tuple(sorted(self.subjects))!r}'
        builtins = 'dict(vars(__import__("builtins")))'
        harness = _HARNESS.format(entry=ENTRY, data=DATA)
        # Below the lines of the code, so that none of these is taken for one of those.
        below = "\n" * (code.count("\n") + 1)
        return (
            f'{below}exec(compile({harness!r}, "<tests>", "exec"), '
            f'{{"__builtins__": {builtins}, "space": globals(), {facts}}})'
        )


@dataclass(frozen=True)
class CheckResult:
    """What came of one test. `outside`: it was compared here. `again`: its value is an object, of which only its own
    interpreter can tell whether it is true. `feedback`: why not, in words for a model.
    """

    passed: bool
    outside: bool = False
    explanation: str = ""
    line: int | None = None
    again: bool = False
    feedback: str = ""


def judged_check(check: Check, claim: Any, *, beside: bool) -> CheckResult:
    """The verdict on what the program's interpreter sent for a test."""
    match claim:
        case ["raised", str(kind), str(message), None | int() as line]:
            what = check.expression or check.statement
            feedback = f"{shortened(what)} {raises(kind, message)}"
            return CheckResult(
                False, explanation=f"{what[:80]}: error {kind} {message}".strip(), line=line, feedback=feedback
            )
        case ["held"] if beside or not check.expression:
            return CheckResult(True)
        case ["opaque", str(kind)] if not beside and check.expression:
            return _of_an_object(check, kind)
        case _ if beside or not check.expression:
            return CheckResult(False, explanation=f"{check.statement[:80]}: no valid report")
    try:
        value = read(claim)
    except Unreadable:
        return CheckResult(False, explanation=f"{check.expression[:80]}: no valid report")
    try:
        passed = bool(check.holds(value, check.expected))
    except Exception:  # of another kind than what it is compared with, or too large
        passed = False
    if passed:
        return CheckResult(True, True)
    expected = f"{check.symbol} {check.expected!r}".strip()
    feedback = f"{shortened(check.expression)} returned {quoted(value)}, expected {shortened(expected)}"
    return CheckResult(
        False, True, f"{check.expression[:80]} gave {value!r:.80}, expected {expected[:80]}", feedback=feedback
    )


def _of_an_object(check: Check, kind: str) -> CheckResult:
    """The verdict on an object that is no data: it is no literal, and nothing but its own methods could say that it is
    equal to one, or less.
    """
    explanation = f"{check.expression[:80]} gave an object of type {kind}"
    if check.symbol in ("true", "false", CONDITION):
        return CheckResult(False, again=True, explanation=explanation)
    if check.symbol in ("!=", "is not", "not in"):
        return CheckResult(True, outside=check.symbol == "is not")
    return CheckResult(
        False, True, f"{explanation}, expected {check.symbol} {check.expected!r:.80}".replace("expected  ", "expected ")
    )
