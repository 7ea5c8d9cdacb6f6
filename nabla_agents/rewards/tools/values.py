"""Python values as data: how a program's interpreter writes them, how the host reads them, and which are alike."""

from __future__ import annotations

import cmath
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

# Within the function that runs the tests. JSON alone would make tuples lists, and keys text.
DATA = """
def data(x, room=28):
    kind = type(x)
    if x is None or kind in (bool, str):
        return x
    if isinstance(x, int) or (kind.__module__ == "numpy" and hasattr(x, "item") and not getattr(x, "shape", 1)):
        x = int(x) if isinstance(x, int) and kind is not bool else x.item()
        if isinstance(x, int):
            return x if x.bit_length() < 10000 else ["int", hex(x)] if x.bit_length() < 50000 else ["opaque", "int"]
    if isinstance(x, float):
        x = float(x)
        return x if x - x == 0 else ["float", repr(x)]
    if isinstance(x, complex):
        return ["complex", data(complex(x).real), data(complex(x).imag)]
    if isinstance(x, str):
        return str.__str__(x)
    if isinstance(x, bytes):
        return ["bytes", bytes(x).hex()]
    if kind.__module__ == "fractions" or (kind.__module__.startswith("sympy.") and getattr(x, "is_Rational", 0)):
        return data(int(x.numerator)) if x.denominator == 1 else ["fraction", f"{x.numerator}/{x.denominator}"[:2000]]
    if kind.__module__ == "decimal" or (kind.__module__.startswith("sympy.") and getattr(x, "is_Float", 0)):
        return ["decimal", str(x)[:2000]] if kind.__module__ == "decimal" else data(float(x))
    if kind.__name__ in ("dict_keys", "dict_items"):
        x = set(x)
    for shape, name in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "set"), (dict, "dict")):
        if isinstance(x, shape) and room:
            parts = [data(part, room - 1) for part in (x.items() if shape is dict else x)]
            opaque = [p for p in parts if type(p) is list and p[0] == "opaque"]
            return opaque[0] if opaque else [name, parts]
    return ["opaque", kind.__name__[:200]]
"""
_SHAPES: dict[str, Any] = {"list": list, "tuple": tuple, "set": frozenset}
_FRACTION = re.compile(r"-?[0-9]{1,1000}/[1-9][0-9]{0,999}")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:E[-+]?[0-9]{1,3})?")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Unreadable(ValueError):
    """A claim that no honest interpreter sends."""


def read(claim: Any) -> Any:
    """The value that a program's interpreter sent; sets come frozen.

    Raises:
        Unreadable: it is none.
    """
    try:
        return _read(claim)
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise Unreadable(str(e)) from e


def _read(claim: Any) -> Any:
    match claim:
        case [str(name), list(parts)] if name in _SHAPES:
            return _SHAPES[name](_read(part) for part in parts)
        case ["dict", list(parts)]:
            return dict(_read(part) for part in parts)
        case ["bytes", str(digits)]:
            return bytes.fromhex(digits)
        case ["float", str(name)]:
            return _FLOATS[name]
        case ["complex", real, imaginary]:
            return complex(_read(real), _read(imaginary))
        case ["int", str(digits)]:
            return int(digits, 16)
        case ["fraction", str(written)] if _FRACTION.fullmatch(written):
            return Fraction(written)
        case ["decimal", str(written)] if _DECIMAL.fullmatch(written):
            return Decimal(written)
        case None | bool() | int() | float() | str():
            return claim
        case _:
            raise ValueError("no value")


def alike(expected: Any, value: Any) -> bool:
    """Whether two values are equal as Python says, with floats within 1e-9 (relative or absolute)."""
    if isinstance(expected, list | tuple):
        same_kind = isinstance(value, list if isinstance(expected, list) else tuple)
        return same_kind and len(expected) == len(value) and all(map(alike, expected, value))
    if isinstance(expected, dict) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(alike(expected[k], value[k]) for k in expected)
    if isinstance(expected, complex) or isinstance(value, complex):
        if not (isinstance(expected, int | float | complex) and isinstance(value, int | float | complex)):
            return False
        return cmath.isclose(expected, value, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(expected, float) or isinstance(value, float):
        if not (isinstance(expected, int | float) and isinstance(value, int | float)):
            return bool(expected == value)
        try:
            return math.isclose(expected, value, rel_tol=1e-9, abs_tol=1e-9)
        except OverflowError:  # an integer beyond the range of floats
            return False
    return bool(expected == value)
