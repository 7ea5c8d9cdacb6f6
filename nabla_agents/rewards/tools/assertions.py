"""Source with assertions as tests: what each of them compares with is taken out of it, and stays in the host."""

from __future__ import annotations

import ast
import builtins
import cmath
import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.tools.evaluation import Unknown, evaluate, names_used
from nabla_agents.rewards.tools.script import CONDITION, Check, Script
from nabla_agents.rewards.tools.values import alike

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_DECISIONS = (ast.Compare, ast.BoolOp, ast.IfExp, ast.Not, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
_OPERATORS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Eq: ("==", lambda value, expected: alike(expected, value)),
    ast.NotEq: ("!=", operator.ne),
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", lambda value, expected: value in expected),
    ast.NotIn: ("not in", lambda value, expected: value not in expected),
}


def script(source: str, entry: str | None) -> Script:
    """The tests of Python source.

    Raises:
        ConfigurationError: no Python, or nothing in it that could fail.
    """
    try:
        body = ast.parse(source).body
        names = _Names(body, entry)
        checks, outside = _checks([*body, *_calls_of_tests(body, entry)], names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ConfigurationError(f"PythonTests got tests that are no Python: {e}.") from e
    if not checks:
        raise ConfigurationError(
            "PythonTests got source that tests nothing; expected assertions, functions test_…(), or check(candidate) "
            "together with entry."
        )
    subject = entry or names.first_asked(body)
    return Script(tuple(checks), outside, subject, names.subjects(body) | ({subject} if subject else set()))


def _checks(body: Sequence[ast.stmt], names: _Names) -> tuple[list[Check], bool]:
    checks: list[Check] = []
    waiting: list[ast.stmt] = []
    outside = True
    for statement in body:
        called = _calls_own_test(statement, names)
        if not isinstance(statement, ast.Assert) and not called:
            outside = outside and not _may_check(statement, names)
            waiting.append(statement)
            continue
        before, waiting = _source(waiting), []
        checks.append(_check(statement, before, names))
    if any(not _idle(statement) for statement in waiting):
        checks.append(Check(_source([]), _source(waiting)))
    return checks, outside


def _check(statement: ast.stmt, before: str, names: _Names) -> Check:
    """The check of an assertion; compared outside, where what it evaluates takes no decision of its own."""
    whole = Check(before, ast.unparse(statement))
    if not isinstance(statement, ast.Assert):
        return whole
    return _compared(statement.test, whole, names) or _evaluated(statement.test, whole, names) or whole


def _compared(test: ast.expr, whole: Check, names: _Names) -> Check | None:
    """The check of one value that the program's interpreter sends: against a constant, or whether it is true."""
    refuted = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    claim = test.operand if isinstance(test, ast.UnaryOp) and refuted else test
    if names.asks_program(claim):
        holds = operator.not_ if refuted else operator.truth
        symbol = "false" if refuted else "true"
        return Check(whole.before, whole.statement, ast.unparse(claim), symbol, _TRUTH, lambda value, _: holds(value))
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    left, right, kind = test.left, test.comparators[0], type(test.ops[0])
    if isinstance(test.ops[0], ast.Eq) and names.constant(left) is not _NONE:
        left, right = right, left
    expected = names.constant(right)
    if expected is _NONE or (kind in (ast.Is, ast.IsNot) and not _single(expected)):
        return None
    # Of two outcomes one is soon guessed, so that it must be the program's own answer.
    if not names.asks_program(left) and (kind is not ast.Eq or _single(expected) or names.decides(left)):
        return None
    symbol, holds = _OPERATORS[kind]
    return Check(whole.before, whole.statement, ast.unparse(left), "" if symbol == "==" else symbol, expected, holds)


def _evaluated(test: ast.expr, whole: Check, names: _Names) -> Check | None:
    """The check of a condition over calls of the program's own: they send their values, the rest is evaluated here."""
    calls: dict[str, ast.expr] = {}
    condition = _Placed(calls, names).visit(copy.deepcopy(test))
    if not calls or names.own & names_used(condition):
        return None
    try:
        evaluate(condition, dict.fromkeys(calls, 1))
    except Unknown:
        return None
    except Exception:  # of another kind than 1
        pass
    sent = [ast.unparse(call) for call in calls.values()]

    def holds(value: Any, _: Any) -> bool:
        return bool(evaluate(condition, dict(zip(calls, value if len(calls) > 1 else [value], strict=True))))

    expression = sent[0] if len(sent) == 1 else f"({', '.join(sent)})"
    return Check(whole.before, whole.statement, expression, CONDITION, _Said(ast.unparse(test)), holds)


class _Placed(ast.NodeTransformer):
    """Puts names into the places of calls of the program's own."""

    def __init__(self, calls: dict[str, ast.expr], names: _Names) -> None:
        self._calls, self._names = calls, names

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not self._names.asks_program(node):
            self.generic_visit(node)
            return node
        name = f"_nabla_{len(self._calls)}"
        self._calls[name] = node
        return ast.Name(name, ast.Load())


class _Said:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


_TRUTH, _NONE = _Said(""), object()


def _literal(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
        repr(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return _NONE
    return value if _readable(value) else _NONE


def _readable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_readable(k) and _readable(v) for k, v in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_readable, value))
    return (
        value is None
        or (isinstance(value, bool | int | str | bytes))
        or (isinstance(value, float | complex) and not cmath.isnan(value))
    )


def _single(value: Any) -> bool:
    return value is None or isinstance(value, bool)


class _Names:
    """Who is who in the tests: what they bind themselves, and what must come from the program."""

    def __init__(self, body: Sequence[ast.stmt], entry: str | None) -> None:
        self.functions: set[str] = set()
        self.tests: set[str] = set()  # those of the functions that can object
        self.own: set[str] = set()  # what the tests bind or define, but for what they import
        for statement in body:
            for node in ast.walk(statement):
                self._bind(node)
        self.imported = {name for s in body for name in _imported(s)}
        self.own |= self.functions
        self.bound = set(dir(builtins)) | self.own | self.imported
        if entry not in self.functions | self.imported:
            self.bound.discard(entry or "")

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self.functions.add(node.name)
            if _objects(node):
                self.tests.add(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            self.functions |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        if isinstance(node, ast.ClassDef):
            self.own.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.own.add(node.id)
        elif isinstance(node, ast.arg):
            self.own.add(node.arg)

    def constant(self, node: ast.expr) -> Any:
        """The value of an expression that needs neither the program nor the tests' own names, or `_NONE`."""
        value = _literal(node)
        if value is not _NONE or self.own & names_used(node):
            return value
        try:
            value = evaluate(node, {})
            return value if _readable(value) else _NONE
        except Exception:  # not evaluated here, or wrong: whoever runs it will see
            return _NONE

    def asks_program(self, node: ast.expr) -> bool:
        """Whether it is a call of what the program defines, or of a method of what that returns."""
        name = _root(node) if isinstance(node, ast.Call) else None
        return name is not None and name not in self.bound

    def decides(self, node: ast.expr) -> bool:
        """Whether its value could be a verdict that is reached beside the program."""
        return any(
            isinstance(n, _DECISIONS) or (isinstance(n, ast.Call) and _root(n) in self.functions)
            for n in ast.walk(node)
        )

    def subjects(self, body: Sequence[ast.stmt]) -> frozenset[str]:
        """Builtins that an assertion asks with data alone, and so may be the program's own: `assert sum(1, 2) == 3`."""
        asserted = (node.test for s in body for node in ast.walk(s) if isinstance(node, ast.Assert))
        calls = (n for test in asserted for n in (test, *ast.iter_child_nodes(test)) if isinstance(n, ast.Call))
        roots = {_root(n) for n in calls if isinstance(n.func, ast.Name) and all(map(_is_data, n.args))}
        return frozenset(name for name in roots if name in dir(builtins))

    def first_asked(self, body: Sequence[ast.stmt]) -> str | None:
        """The first name that is called and that only the program can define."""
        calls = (n for s in body for n in ast.walk(s) if isinstance(n, ast.Call))
        return next((name for n in calls if (name := _root(n)) is not None and name not in self.bound), None)


def _root(node: ast.AST) -> str | None:
    """`f` of `f(1)`, `f(1).g(2)` and `f.g(1)`."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _is_data(node: ast.expr) -> bool:
    return _literal(node) is not _NONE


def _imported(statement: ast.stmt) -> Iterator[str]:
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((a.asname or a.name).partition(".")[0] for a in node.names)


def _calls_of_tests(body: Sequence[ast.stmt], entry: str | None) -> list[ast.stmt]:
    """Calls of the test functions that the source only defines: `test_…()`, and `check(candidate)` of `entry`."""
    called = {_root(s.value) for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)}
    found: list[str] = []
    for function in body:
        if not isinstance(function, ast.FunctionDef) or function.name in called:
            continue
        arguments = len(function.args.posonlyargs) + len(function.args.args) - len(function.args.defaults)
        if function.name.startswith("test") and arguments == 0:
            found.append(f"{function.name}()")
        elif function.name == "check" and arguments == 1 and entry:
            found.append(f"check({entry})")
    return ast.parse("\n".join(found)).body


def _calls_own_test(statement: ast.stmt, names: _Names) -> bool:
    """Whether it is nothing but the call of a function that the tests define, as in `check(add)`."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and _root(call) in names.tests


def _objects(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Assert | ast.Raise) for n in ast.walk(node))


def _may_check(statement: ast.stmt, names: _Names) -> bool:
    """Whether it could object, as an assertion does: then who passes it has not been compared outside."""
    if isinstance(statement, _DEFINITIONS):
        return False
    if _objects(statement):
        return True
    roots = {_root(n) for n in ast.walk(statement) if isinstance(n, ast.Call)}
    expression = isinstance(statement, ast.Expr) and bool(roots & (names.imported | {"exec", "eval"}))
    return expression or bool(roots & names.functions)


def _idle(statement: ast.stmt) -> bool:
    """Whether nothing is lost if a statement behind the last test does not run."""
    if isinstance(statement, (*_DEFINITIONS, ast.Assign, ast.AnnAssign, ast.Pass)):
        return True
    if isinstance(statement, ast.If):  # `if __name__ == "__main__":`, which is not so
        return "__name__" in ast.unparse(statement.test)
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, ast.Constant) or _root(statement.value) == "print"


def _source(statements: Sequence[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, statements))
