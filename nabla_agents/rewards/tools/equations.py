"""The equations of a text that are surely arithmetic, each recomputed. What could be read otherwise is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from nabla_agents.rewards.tools import exact
from nabla_agents.rewards.tools.exact import CONVERSIONS, MINUS
from nabla_agents.rewards.tools.terms import SIDE, SPACE, SYMBOLS, Side, Term, side

_EQUALS = re.compile(rf"{SPACE}&?=&?\s*(?:\*\*)?")
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")  # a calculator's note: `3 * 4 = <<3*4=12>>12`
_LOOK_BACK = 64  # characters before an equation that decide whether it is part of a longer one

# What makes a side the part of something longer, which is not judged: `3 ^ 2 + 4`, `half of 2 + 4`, `x -3 + 5`.
_LIST_MARKER = re.compile(r"\s*(?:[-–*+•]|\(?\w{1,3}[.)])\s+|(?:.*(?:[^\w\s)\]}%]|[^\W\d_]{2})\s+|\s*)\*{2,3}")
_OPEN_BEFORE = re.compile(rf"(?:[{SYMBOLS})}}\]\d^√%!|&<>~]|(?<![^\W\d_])[xX])\s*")
_SIGN_AFTER_LETTER = re.compile(r"(?:^|.*\W)[^\W\d_]\s*", re.DOTALL)
_WORDS_BEFORE = re.compile(
    r"(?i)(?:of|mod|times|plus|minus|by|over|than|twice|double|triple|thrice|half|sqrt|root|log|ln|lg|exp|sin|cos|tan|cot"
    r"|sec|csc|abs|max|min|floor|ceil|choose|squared|cubed|cdot|div|pm|mp|per)"
)
_OPEN_AFTER = re.compile(r"[\w%^({]|\\%|[.,:]\d")
# What may follow a result that is right, but makes one that seems wrong doubtful: `12 = 2 * n`, `4 = 2 (mod 2)`,
# `0.66…`, `1 500`, `3 \sqrt{2}`, `2 pm`.
_DOUBTFUL_AFTER = re.compile(
    rf"\.\.|…|\u0305|!|{SPACE}(?:[{SYMBOLS}]{SPACE}[\w(\\$]|[xX]\b|\({SPACE}(?:[\d\\({MINUS}]|[^\W\d_]\b|mod)"
    r"|\d{3}(?!\d)|\d+[/⁄]\d|(?![aI]\b)[^\W\d_]\b|\\(?!text|mathrm|q?quad|[Rr]ightarrow|implies|end)[a-zA-Z]"
    r"|mod\b|o['’]clock|[ap]\.?m\b)"
)
_OTHER_ARITHMETIC = re.compile(
    r"(?i)≡|\b(?:mod|modulo|modulus|modular|congruent|binary|octal|hexadecimal|bitwise|base[ -]?(?:\d|two|three|eight)|"
    r"in base)\b"
)


@dataclass(frozen=True)
class Equation:
    """`left = written`, where `written` stands at start:end of the text."""

    start: int
    end: int
    left: str
    written: str
    right: bool
    expected: str | None  # the result as it should read; None where there is none, or no short decimal of it


def equations(text: str) -> list[Equation]:
    """In the order of their results. Linear in the text."""
    notes = list(_ANNOTATION.finditer(text))
    outside = _ANNOTATION.sub(lambda note: " " * len(note[0]), text)
    sure = _OTHER_ARITHMETIC.search(text) is None
    found = [*_region(outside, 0, len(text))]
    for note in notes:
        found += _region(text, note.start(1), note.end(1))
    return sorted((e for e in found if sure or e.right), key=lambda e: e.start)


def _region(text: str, start: int, end: int) -> Iterator[Equation]:
    left: re.Match[str] | None = None
    judged_to = start
    for right in SIDE.finditer(text, start, end):
        gap = None if left is None else _EQUALS.fullmatch(text, left.end(), right.start())
        if left is not None and gap is not None:
            equation = _equation(text, left, right, judged_to)
            if equation is not None:
                judged_to = right.end()
                yield equation
        left = right


def _equation(text: str, left: re.Match[str], right: re.Match[str], judged_to: int) -> Equation | None:
    """The equation of two sides, or None where they are not a whole one, or not surely one."""
    sum_, result = side(left.group()), side(right.group())
    if sum_ is None or result is None or len(sum_.terms) == 1 or _continues(text, left, judged_to):
        return None
    first = result.terms[0]
    sum_ = sum_ if first.money else sum_.without_stray_sign()
    if sum_.kind is None or not _counts(sum_, first):
        return None
    value, rest = sum_.value, result.terms[1:]
    is_right = value is not None and (
        (first.value is not None and exact.agrees(value, first.value, first.decimals))
        or (rest != () and result.value == value)
    )
    if _OPEN_AFTER.match(text, right.end()) and not (rest and is_right):
        return None
    if not is_right and _doubtful(text, left, right, sum_, result):
        return None
    start = right.start()
    expected = None if is_right or value is None or (rest and rest[0].operator == "/") else _expected(value, first)
    return Equation(start, start + first.end, left.group(), first.written, is_right, expected)


def _counts(sum_: Side, result: Term) -> bool:
    """Whether the result counts what the sum counts; a bare sum may have a result in any words or currency."""
    if sum_.kind == "":
        return result.kind != "%" and not result.attached
    if sum_.kind in ("$", "€", "£", "¥", "₹"):
        return result.kind in ("", sum_.kind)
    return f"{result.kind} ".startswith(f"{sum_.kind} ")


def _continues(text: str, match: re.Match[str], judged_to: int) -> bool:
    """Whether a side goes on to its left, as in `(1 + 2) * 3 + 4`; the marker of a list item or of bold text is no
    operator, and an equation ends the one before it.
    """
    at = match.start()
    before = text[max(text.rfind("\n", 0, at) + 1, at - _LOOK_BACK, judged_to) : at]
    if _LIST_MARKER.fullmatch(before):
        return False
    last = len(before.rstrip()) - 1
    if last < 0:
        return False
    if match.group()[0] in MINUS and _SIGN_AFTER_LETTER.fullmatch(before):
        return True
    word = re.search(r"[^\W\d_]+(?=\s*$)", before)
    if word is not None and _WORDS_BEFORE.fullmatch(word[0]):
        return True
    return _OPEN_BEFORE.fullmatch(before, last) is not None


def _doubtful(text: str, left: re.Match[str], right: re.Match[str], sum_: Side, result: Side) -> bool:
    """Whether an equation that seems wrong may be right in another reading."""
    first, value = result.terms[0], sum_.value
    if any(_DOUBTFUL_AFTER.match(text, end) for end in (right.end(), right.start() + result.terms[-1].end)):
        return True
    if "\n" in text[left.end() : right.start()] and re.match(r"[.)]\s", text[right.end() : right.end() + 2]):
        return True  # no result, and the number of the next list item
    if value is None or first.value is None:
        return False
    if first.kind and any(t.operator == "/" for t in sum_.terms) and _whole_part(value, first.value):
        return True  # `7 / 2 = 3 boxes`
    if first.kind and any(
        exact.agrees(v, first.value, first.decimals) for f in CONVERSIONS for v in (value * f, value / f)
    ):
        return True
    if first.kind and not first.money and first.value == -value:
        return True  # `2010 - 2015 = 5 years`
    if "." in left.group() + right.group():  # 1.000 + 500 = 1.500, where a point separates thousands
        other = side(left.group().replace(".", "")), side(right.group().replace(".", ""))
        return None not in other and other[0].value == other[1].terms[0].value  # type: ignore[union-attr]
    return False


def _whole_part(value: Fraction, written: Fraction) -> bool:
    return written in (math.floor(value), math.ceil(value))


def _expected(value: Fraction, result: Term) -> str | None:
    if result.written.lstrip(MINUS).startswith("\\") and "frac" in result.written:
        sign = "-" if value < 0 else ""
        return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    places = exact.short_decimals(value)
    if places is None and result.decimals == 0:
        return None
    grouping = "," if "," in result.written else ""
    return exact.text(value, result.decimals if places is None else places, prefix=result.money, grouping=grouping)
