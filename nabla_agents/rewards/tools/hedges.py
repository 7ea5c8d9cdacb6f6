r"""Whether an answer commits itself to one value; `42; 43`, `41 = 42` and `\ge 42` do not."""

from __future__ import annotations

import re
import unicodedata

from nabla_agents.rewards.tools.answer import ASSIGNED, normal, number

# Numbers side by side, `4 2`, but for groups of three digits, `1 000`, and mixed numbers, `1 1/2`.
_GAP = r"(?:\s|~|\\[,;:!> ]|\\q?quad\b|\\enspace\b|\\thinspace\b)+"
_BESIDE = re.compile(rf"\d{_GAP}[-+]?\d")
_GROUPED = re.compile(rf"(?<!\d)\d{{1,3}}(?:{_GAP}\d{{3}})+(?!\d)")
_MIXED = re.compile(r"(?<![\d.])\d+\s+\d+\s?/\s?\d+(?!\d)")
# What relates a value to another one, by the name of the relation.
_RELATIONS = {
    "an equation": re.compile(r"=(?!>)|\\(?:equiv|coloneqq)\b|≡"),
    "an approximation": re.compile(
        r"≈|∼|≃|≅|≐|\\(?:approx(?:eq)?|thickapprox|sim(?:eq)?|thicksim|cong|doteq|asymp|propto)\b|(?:^|=)[\s$(]*~"
    ),
    "an inequality": re.compile(
        r"[<>≤≥≠≮≯≪≫]|\\(?:[lg]e|[lg]eq|[lg]eqslant|[lg]eqq|lt|gt|ll|gg|ne|neq|not|nless|ngtr|lesssim|gtrsim)\b"
    ),
    "more or less": re.compile(r"±|∓|\\(?:pm|mp)\b|\+/-|\+-"),
    "several answers": re.compile(
        r"[;∨∧¬∪]|\\(?:l?or|land|vee|wedge|lnot|neg|cup|mid)\b|\\text\s*\{\s*(?:or|and)\s*\}|\.\.|…|\\[lc]?dots\b"
    ),
}
_COMMA = re.compile(r",|\\&|&")
# Of an answer that should be a number and does not look like one: all that may be in it.
_CALCULATION = re.compile(
    r"(?:[\d+\-*/^(){}.!%|\s×·÷−√πei]|\\(?:[dt]?frac|sqrt|cdot|times|div|pi|left|right|log|ln|lg|exp|sin|cos|tan|cot"
    r"|arcsin|arccos|arctan|d?binom|lfloor|rfloor|lceil|rceil|lvert|rvert|mathrm|[,!;: ])(?![A-Za-z]))+"
)

_CUT_OFF = re.compile(r"[-+*/^−×÷·=]\s*$")


def hedge(gold: str, answer: str) -> str:
    """Why an answer is none, or not one only; empty for one that can be compared. Relations that the right answer has
    itself, as of `x > 3`, are no hedge.
    """
    if strange := next(
        (c for c in answer if unicodedata.category(c) in ("Cf", "Cc", "Co", "Cs") and c not in "\n\t"), ""
    ):
        return f"it has the invisible character U+{ord(strange):04X}"
    if strange := next((c for c in answer if c.isnumeric() and not c.isascii()), ""):
        return f"{strange!r} is no plain digit"
    if beside(answer) and not beside(gold):
        return "it has two numbers side by side"
    bare = _value(answer)
    for name, relation in _RELATIONS.items():
        if relation.search(bare) and not relation.search(gold):
            return f"it is {name}"
    commas = bare.replace("{,}", "")
    is_number = number(normal(answer)) is not None
    if _COMMA.search(commas) and not _COMMA.search(gold) and not is_number:
        return "it has several parts"
    if number(normal(gold)) is not None and not is_number and not _CALCULATION.fullmatch(bare):
        return "it is no calculation"
    if _CUT_OFF.search(bare) and not _CUT_OFF.search(gold):
        return "it ends in an operator"
    return ""


def beside(answer: str) -> bool:
    """Whether two numbers stand side by side, as in `4 2`."""
    answer = _GROUPED.sub("1", answer)
    return _BESIDE.search(_MIXED.sub("1", answer)) is not None


def _value(answer: str) -> str:
    """What is said to be the value: of `x = 42` the right side."""
    stripped = answer.strip().strip("$").strip().removeprefix("=").lstrip()
    assigned = ASSIGNED.match(stripped)
    return stripped[assigned.end() :] if assigned else stripped
