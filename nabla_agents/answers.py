"""The final answer of a completion, as voting needs it."""

from __future__ import annotations

import re

# Possessive quantifiers: the time is linear in the text, whatever it contains.
_GAP = r"[*_ \t]*+"  # spaces and Markdown emphasis, as in `**Answer:** 7`
_MARKED = (
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*+\})*+)\}"),
    re.compile(r"####[ \t]*+(\S[^\n]*)"),
    re.compile(rf"(?i)\banswer\b{_GAP}(?:is\b{_GAP}[:=]?|[:=]){_GAP}(\S[^\n]*)"),
)
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-−])?(?:\d[\d,]*+(?:\.\d+)?|(?<!\w)\.\d+)")  # a minus after a digit subtracts


def extract_answer(text: str) -> str | None:
    r"""The last marked answer (`\boxed{}`, `####`, `Answer:`), else the last number, in a normal form; None if neither.

    Numbers lose thousands separators and needless zeros, and Unicode digits and signs become ASCII, so that equal
    answers vote together.
    """
    for pattern in (*_MARKED, _NUMBER):
        if found := [answer for answer in map(_normal, pattern.findall(text)[-1:]) if answer]:
            return found[0]
    return None


def _normal(answer: str) -> str:
    decoration = "*_`$ \t\r"
    answer = answer.strip(decoration).rstrip(".").strip(decoration)
    if not _NUMBER.fullmatch(answer):
        return " ".join(answer.casefold().split())
    digits = "".join(str(int(c)) if c.isdecimal() else c for c in answer.replace(",", "").replace("−", "-"))
    whole, _, part = digits.lstrip("-").partition(".")
    value = ((whole.lstrip("0") or "0") + "." + part.rstrip("0")).rstrip(".")
    return "-" + value if digits.startswith("-") and value != "0" else value
