"""MBPP+ of EvalPlus: short functions, judged by all their assertions and by the reference's values on many inputs."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards import PythonTests
from nabla_agents.rewards.tools import executors
from nabla_agents.rewards.tools.code import python_code
from nabla_agents.rewards.tools.unit_tests import equal
from nabla_agents.sandbox import Execution, Limits, Program
from nabla_agents.types import Rollout

SHOWN = 2  # assertions that a question has, and that may lead a search
_RELATIVE, _ABSOLUTE = 1e-7, 1e-6  # least tolerances of floats, as EvalPlus has them
_LIMITS = Limits(cpu_seconds=6, wall_seconds=20, value_bytes=4 << 20)
_QUICK = Limits(cpu_seconds=1, wall_seconds=4)


class MbppPlus:
    """One row of the set, which users fetch from its origin (github.com/evalplus/mbppplus_release).

    `text` is the description with the first two assertions. An answer is right if it passes all assertions, and gives
    the reference's values for `base_input` and `plus_input`, within `atol` where they are floats. Inputs for which the
    reference's value is no JSON, or takes too long, are left out.

    Raises:
        ConfigurationError: the row lacks a field, or has assertions that are none.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._entry, self._reference, self._atol = row["entry_point"], row["canonical_solution"], float(row["atol"])
        self._inputs = [list(arguments) for arguments in (*row["base_input"], *row["plus_input"])]
        self._tests = PythonTests(row["assertion"], entry=self._entry, limits=_LIMITS)
        shown = [line for line in row["assertion"].splitlines() if line.startswith("assert")][:SHOWN]
        description = ast.literal_eval(row["prompt"].strip()).strip()
        words = [line for line in description.splitlines() if not line.startswith("assert")]
        self.text = "\n".join([*words, *shown])

    def right(self, texts: Sequence[str]) -> list[bool]:
        """Which of some answers are right."""
        scores = self._tests.score([Rollout.from_text(self.text, text) for text in texts])
        passed = [score.judged and score.value == 1.0 for score in scores]
        return [good and self._agrees(text) for good, text in zip(passed, texts, strict=True)]

    def _agrees(self, text: str) -> bool:
        inputs, expected = self._expected
        code = python_code(text, self._entry)
        execution = self._run("" if code is None else code.flush, inputs, _LIMITS)
        close = partial(equal, relative=_RELATIVE, absolute=max(self._atol, _ABSOLUTE))
        return len(execution.values) == len(inputs) and all(map(close, expected, execution.values))

    @cached_property
    def _expected(self) -> tuple[list[Any], list[Any]]:
        """The inputs that the reference has a value for, and the values."""
        whole = self._run(self._reference, self._inputs, _LIMITS)
        pairs = list(zip(self._inputs, whole.values, strict=False))
        if len(pairs) < len(self._inputs):
            pairs = self._one_by_one()
        known = [(arguments, value) for arguments, value in pairs if value is not None]
        return [arguments for arguments, _ in known], [value for _, value in known]

    def _one_by_one(self) -> list[tuple[Any, Any]]:
        """Where all inputs together take too long: those before that."""
        pairs, spent = list[tuple[Any, Any]](), 0.0
        for arguments in self._inputs:
            execution = self._run(self._reference, [arguments], _QUICK)
            spent += execution.wall_seconds
            if spent > _QUICK.wall_seconds:
                break
            pairs += [(arguments, value) for value in execution.values]
        return pairs

    def _run(self, code: str, calls: Sequence[Any], limits: Limits) -> Execution:
        return executors.programs().run(Program(code, entry=self._entry, calls=calls), limits)


def mbpp_plus(row: Mapping[str, Any], at: str) -> MbppPlus:
    """The question of the row that stands `at` a place of a file.

    Raises:
        ConfigurationError: the row is none of MBPP+.
    """
    try:
        return MbppPlus(row)
    except (ConfigurationError, KeyError, TypeError, ValueError, SyntaxError) as e:
        raise ConfigurationError(f"{at} is no row of MBPP+ ({type(e).__name__}: {e}).") from e
