"""Conditions over data, evaluated in the host: what is left of an assertion once the program's answers are known."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from nabla_agents.rewards.tools.values import alike

MAX_BITS = 100_000  # of a whole number
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda one, other: alike(one, other),
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
_COMPUTED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Any] = {
    f.__name__: f
    for f in (
        abs,
        bool,
        chr,
        dict,
        float,
        frozenset,
        int,
        len,
        list,
        max,
        min,
        ord,
        round,
        set,
        sorted,
        str,
        sum,
        tuple,
    )
}
_MATH: dict[str, float] = {"inf": math.inf, "nan": math.nan, "pi": math.pi, "e": math.e}


class Unknown(Exception):
    """A form that is not evaluated here, or beyond the bounds."""


def evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """What an expression over `values` comes to: literals, plain arithmetic on numbers, comparisons, and functions of
    Python that turn data into data. Equal floats are equal within 1e-9.

    Raises:
        Unknown: it has another form, or is too large.
        Exception: whatever Python raises for it, as for `'a' < 1`.
    """
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Tuple() | ast.List() | ast.Set():
            items = [evaluate(item, values) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else items if isinstance(node, ast.List) else set(items)
        case ast.Dict(keys=keys, values=parts) if all(keys):
            return {evaluate(k, values): evaluate(v, values) for k, v in zip(keys, parts, strict=True) if k}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            number = _number(evaluate(operand, values))
            return -number if isinstance(node.op, ast.USub) else number
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not evaluate(operand, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _COMPUTED:
            one, other = _number(evaluate(left, values)), _number(evaluate(right, values))
            return _number(_COMPUTED[type(op)](one, other))
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARED for op in ops):
            sides = [evaluate(side, values) for side in (left, *rest)]
            return all(_COMPARED[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
        case ast.Attribute(value=ast.Name(id="math"), attr=name) if name in _MATH:
            return _MATH[name]
        case ast.Call(func=function, args=arguments, keywords=named):
            called = _function(function)
            given = [evaluate(argument, values) for argument in arguments]
            options = {word.arg: evaluate(word.value, values) for word in named if word.arg and word.arg != "key"}
            if len(options) < len(named) or any(isinstance(a, int) and a.bit_length() > MAX_BITS for a in given):
                raise Unknown
            return called(*given, **options)
        case _:
            raise Unknown


def names_used(node: ast.expr) -> set[str]:
    """The names of functions and modules that it relies on."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _function(node: ast.expr) -> Callable[..., Any]:
    match node:
        case ast.Name(id=name) if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        case ast.Attribute(value=ast.Name(id="math"), attr="isclose"):
            return math.isclose
        case _:
            raise Unknown


def _number(value: Any) -> Any:
    if not isinstance(value, int | float | complex) or (isinstance(value, int) and value.bit_length() > MAX_BITS):
        raise Unknown
    return value
