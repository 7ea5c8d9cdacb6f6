"""What a function must do: calls with expected results, or assertions. Checked when made; compared in the host."""

from __future__ import annotations

import json
import keyword
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.tools.assertions import script
from nabla_agents.rewards.tools.script import Script


@dataclass(frozen=True)
class Calls:
    """Argument lists and the values they must give, as JSON; the values never leave the host."""

    entry: str
    arguments: tuple[list[Any], ...]
    expected: tuple[Any, ...]

    @property
    def count(self) -> int:
        return len(self.arguments)


def unit_tests(tests: object, entry: str | None) -> Calls | Script:
    """Tests from pairs (arguments, expected), or from source with assertions.

    Raises:
        ConfigurationError: no tests, no Python, no identifier, or values that are no JSON.
    """
    entry = None if entry is None else _name(entry)
    if isinstance(tests, str):
        return script(textwrap.dedent(tests), entry)
    if isinstance(tests, bytes) or not isinstance(tests, Sequence) or not tests:
        raise ConfigurationError(f"PythonTests got {tests!r}; expected pairs (arguments, expected), or assertions.")
    if entry is None:
        raise ConfigurationError("PythonTests got pairs without entry; expected the name of the function to call.")
    pairs = [_pair(test) for test in tests]
    return Calls(entry, tuple(a for a, _ in pairs), tuple(e for _, e in pairs))


def equal(expected: Any, value: Any, *, relative: float = 1e-9, absolute: float = 1e-9) -> bool:
    """Whether a returned JSON value is the expected one.

    Numbers are equal by value, 3 and 3.0 too, and floats within either tolerance; True is not 1. Lists and
    tuples are the same, and so are dicts with the same keys (JSON keys are text).
    """
    if isinstance(expected, bool) or isinstance(value, bool) or expected is None or value is None:
        return expected is value
    if isinstance(expected, int | float) and isinstance(value, int | float):
        if isinstance(expected, int) and isinstance(value, int):
            return expected == value
        try:
            return math.isclose(expected, value, rel_tol=relative, abs_tol=absolute)
        except OverflowError:  # an integer beyond the range of floats
            return False
    within = partial(equal, relative=relative, absolute=absolute)
    if isinstance(expected, list) and isinstance(value, list):
        return len(expected) == len(value) and all(map(within, expected, value))
    if isinstance(expected, dict) and isinstance(value, dict):
        return expected.keys() == value.keys() and all(within(expected[k], value[k]) for k in expected)
    return isinstance(expected, str) and expected == value


def _name(entry: object) -> str:
    """The function's name as Python reads it: full-width letters, say, are the plain ones."""
    name = unicodedata.normalize("NFKC", entry) if isinstance(entry, str) else ""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigurationError(f"PythonTests entry is {entry!r}; expected the name of a function.")
    return name


def _pair(test: object) -> tuple[list[Any], Any]:
    if (
        not isinstance(test, Sequence)
        or isinstance(test, str)
        or len(test) != 2
        or not isinstance(test[0], list | tuple)
    ):
        raise ConfigurationError(f"A test is {test!r}; expected (arguments, expected), for example ((1, 2), 3).")
    if not all(map(_keys_are_text, test[0])):
        raise ConfigurationError(
            f"A test has the arguments {test[0]!r}; JSON has only text as keys: write it as an assertion."
        )
    try:
        arguments, expected = json.loads(json.dumps([list(test[0]), test[1]], allow_nan=False))
    except (TypeError, ValueError, RecursionError) as e:
        raise ConfigurationError(f"A test is not JSON: {e}; let the function return lists, numbers, text.") from e
    return arguments, expected


def _keys_are_text(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _keys_are_text(part) for key, part in value.items())
    return not isinstance(value, list | tuple) or all(map(_keys_are_text, value))
