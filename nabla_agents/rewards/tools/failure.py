"""How a program failed, in words for the model that wrote it."""

from __future__ import annotations

from typing import Final

from nabla_agents.rewards.remark import quoted
from nabla_agents.rewards.tools.code import line_span
from nabla_agents.rewards.tools.fences import Fenced
from nabla_agents.sandbox import Execution, Status

_MAX_MESSAGE: Final = 160  # characters of an error's own text
_WORDS: Final = {
    Status.OK: "exits before it returns",
    Status.TIMEOUT: "takes too long",
    Status.OOM: "takes too much memory",
    Status.DENIED: "does what is not allowed here",
    Status.OUTPUT_LIMIT: "prints or returns too much",
}


def failure(execution: Execution) -> str:
    """What a run did in place of returning: `raises ValueError: zero`, `takes too long`."""
    if execution.status in _WORDS:
        return _WORDS[execution.status]
    return raises(execution.error_type, execution.error_message) if execution.error_type else "ends without a result"


def raises(kind: str, message: str) -> str:
    """An error on one line, without its traceback."""
    return f"raises {kind[:_MAX_MESSAGE]}: {' '.join(message[:_MAX_MESSAGE].split())}".rstrip(": ")


def at_line(code: Fenced, line: int | None) -> str:
    """Where in the code it was, as the end of a sentence; nothing where the code has no such line."""
    place = line_span(code, line)
    if place is None:
        return ""
    return f", in line {line}, {quoted(code.text[place[0] - code.start : place[1] - code.start])}"
