"""prompt_assertions: the unit tests that a question itself shows."""

from __future__ import annotations

import re

from nabla_agents.types import Rollout

_ASSERTION = re.compile(r"^[ \t]*+(assert\b[^\n]*+)$", re.MULTILINE)


def prompt_assertions(rollout: Rollout) -> str | None:
    """The lines of the last user turn that begin with `assert`, for `PythonTests(prompt_assertions)`; None without any.

    So one reward serves questions with different tests. An assertion must stand on one line.
    """
    return "\n".join(_ASSERTION.findall(rollout.prompt.question)) or None
