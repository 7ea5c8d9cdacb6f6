"""The final answer of a completion, as voting needs it."""

from __future__ import annotations

import re

_MARKED = (
    re.compile(r"\\boxed\{([^{}]*)\}"),
    re.compile(r"####[ \t]*(\S[^\n]*)"),
    re.compile(r"(?i)\banswer(?:\s+is)?[ \t]*[:=]?[ \t]*(\S[^\n]*)"),
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def extract_answer(text: str) -> str | None:
    r"""The last marked answer (`\boxed{}`, `####`, `Answer:`), else the last number, in a normal form; None if neither.

    Numbers lose thousands separators and trailing zeros, so that equal answers vote together.
    """
    for pattern in _MARKED:
        if found := pattern.findall(text):
            return _normal(found[-1])
    numbers = _NUMBER.findall(text)
    return _normal(numbers[-1]) if numbers else None


def _normal(answer: str) -> str:
    answer = answer.strip().rstrip(".").strip("$ ").strip()
    if _NUMBER.fullmatch(answer):
        answer = answer.replace(",", "")
        return answer.rstrip("0").rstrip(".") if "." in answer else answer
    return answer.casefold()
