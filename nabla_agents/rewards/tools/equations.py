"""The equations of a text that are surely arithmetic, each recomputed. What could be read otherwise is left out."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nabla_agents.rewards.tools import exact
from nabla_agents.rewards.tools.exact import CONVERSIONS, MINUS
from nabla_agents.rewards.tools.expression import Unsure, amount, beginning, ending
from nabla_agents.rewards.tools.letters import sums_of_letters
from nabla_agents.rewards.tools.side import Side, agree, has_money_once
from nabla_agents.rewards.tools.tokens import SIDE, SPACE, SYMBOLS, Term, Token, tokens

_EQUALS = re.compile(rf"{SPACE}&?=&?\s*(?:\*\*)?")
_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")  # a calculator's note: `3 * 4 = <<3*4=12>>12`
_RESULT = re.compile(r"=\s*([\d.]+)\s*$")
_LOOK_BACK = 64  # characters before an equation that decide whether it is part of a longer one

# What makes a side the part of something longer, which is not judged: `3 ^ 2 + 4`, `half of 2 + 4`, `x -3 + 5`.
_LIST_MARKER = re.compile(r"\s*(?:[-–*+•]|\(?\w{1,3}[.)])\s+|(?:.*(?:[^\w\s)\]}%]|[^\W\d_]{2})\s+|\s*)\*{2,3}")
_OPEN_BEFORE = re.compile(rf"(?:[{SYMBOLS})}}\]\d^√%!|&<>~]|(?<![^\W\d_])[xX])\s*")
_FUNCTION = re.compile(r".*(?:[^\W\d_]|\W[^\W\d_]\s+)|[^\W\d_]\s+", re.DOTALL)
_SIGN_AFTER_LETTER = re.compile(r"(?:^|.*\W)[^\W\d_]\s*", re.DOTALL)
_WORDS_BEFORE = re.compile(
    r"(?i)(?:of|mod|times|plus|minus|by|over|than|twice|double|triple|thrice|half|sqrt|root|log|ln|lg|exp|sin|cos|tan|cot"
    r"|sec|csc|abs|max|min|floor|ceil|choose|squared|cubed|cdot|div|pm|mp|per)"
)
_MIXED = re.compile(r".*\d\s+and\s*", re.DOTALL)  # `1 and 1/4`
_OPEN_AFTER = re.compile(r"[\w%^({]|\\%|[.,:]\d")
# What may follow a result that is right, but makes one that seems wrong doubtful: `12 = 2 * n`, `4 = 2 (mod 2)`,
# `0.66…`, `0.\overline{6}`, `1 500`, `3 \sqrt{2}`, `2 pm`.
_DOUBTFUL_AFTER = re.compile(
    rf"\.\.|\.\\|…|\u0305|!|{SPACE}(?:[{SYMBOLS}]{SPACE}[\w(\\$]|[xX]\b|\({SPACE}(?:[\d\\({MINUS}]|[^\W\d_]\b|mod)"
    r"|\d{3}(?!\d)|\d+[/⁄]\d|(?![aI]\b)[^\W\d_]\b|\\(?!text|mathrm|q?quad|[Rr]ightarrow|implies|end)[a-zA-Z]"
    r"|mod\b|o['’]clock|[ap]\.?m\b)"
)
_OTHER_ARITHMETIC = re.compile(
    r"(?i)≡|\b(?:mod|modulo|modulus|modular|congruent|binary|octal|hexadecimal|bitwise|base[ -]?(?:\d|two|three|eight)|"
    r"in base)\b"
)


@dataclass(frozen=True)
class Equation:
    """`left = written`, where `written` stands at start:end of the text: the result, or all of a right side of several
    numbers.
    """

    start: int
    end: int
    left: str
    written: str
    right: bool
    correct: str = ""  # what is right of `left`, as `= 7`, `≈ 68.9` or `is undefined`
    comes_to: str = ""  # what `written` comes to, if it is more than one number
    expected: str | None = (
        None  # how `written` should read; None where there is no such text, or no short decimal of it
    )


def equations(text: str) -> list[Equation]:
    """In the order of their results. Linear in the text."""
    notes = list(_ANNOTATION.finditer(text))
    outside = _ANNOTATION.sub(lambda note: " " * len(note[0]), text)
    sure = _OTHER_ARITHMETIC.search(text) is None
    results = {note.end(): result[1] for note in notes if (result := _RESULT.search(note[1]))}
    found = [*_Region(outside, results).equations(0, len(text))]
    within = _Region(text, {})
    for note in notes:
        found += within.equations(note.start(1), note.end(1))
    return sorted((e for e in found if sure or e.right), key=lambda e: e.start)


@dataclass(frozen=True)
class _Run:
    """A side at start:end of the text."""

    start: int
    end: int
    written: str
    letters: str = ""  # what stands there, if `written` has numbers for letters

    @cached_property
    def tokens(self) -> list[Token] | None:
        """None: it is too long to be judged."""
        return tokens(self.written)


class _Region:
    """A text in which the equations of a part are found. `notes`: a calculator's results, by where their note ends."""

    def __init__(self, text: str, notes: Mapping[int, str]) -> None:
        self._text, self._notes, self._sums = text, notes, sums_of_letters(text)
        self._judged_to = 0

    def equations(self, start: int, end: int) -> Iterator[Equation]:
        left: _Run | None = None
        self._judged_to, chained = start, False
        for match in SIDE.finditer(self._text, start, end):
            right = _Run(match.start(), match.end(), match.group())
            linked = left is not None and _EQUALS.fullmatch(self._text, left.end, right.start) is not None
            if right.start in self._sums:
                at, sum_, numbers = self._sums[right.start]
                left, linked = _Run(at, right.start, numbers, sum_), True
            if left is not None and linked:
                with contextlib.suppress(Unsure):
                    yield self._equation(left, right, chained)
                    self._judged_to = right.end
            left, chained = right, linked

    def _equation(self, left: _Run, right: _Run, chained: bool) -> Equation:
        """The equation of two sides; Unsure where they are not a whole one, or not surely one."""
        one, other = self._beginning(left, chained), _ending(right)
        result = other.single
        if has_money_once(one.tokens) and not any(t.term is not None and t.term.money for t in other.tokens):
            one = one.bare()
        if one.single is not None and not (chained and _is_rewritten(one, other)):
            raise Unsure
        if not _counts(one.amount.kind, other.amount.kind, attached=result is not None and result.attached):
            raise Unsure
        is_right = agree(one, other, self._note(other))
        if _OPEN_AFTER.match(self._text, right.end) and not (is_right and result is None):
            raise Unsure
        if not is_right and self._doubtful(left, right, one, other):
            raise Unsure
        start, end = _written_at(other)
        left_text = left.letters or _in_one_line(self._text[one.start : one.end])
        written = _in_one_line(self._text[start:end])
        if is_right:
            return Equation(start, end, left_text, written, True)
        expected = _expected(one, other, self._text[start:end])
        comes_to = "" if result is not None or other.amount.value is None else exact.about(other.amount.value)
        return Equation(start, end, left_text, written, False, _correct(one, expected), comes_to, expected)

    def _beginning(self, run: _Run, chained: bool) -> Side:
        read = beginning(run.tokens or (), chained=chained)
        if not read or self._continues(run.start + read[0].start, read[0].symbol):
            raise Unsure
        try:
            return Side(run.start, read, amount(read))
        except Unsure:
            if not has_money_once(read):
                raise
            return Side(run.start, read, amount(read, bare=True))

    def _note(self, side: Side) -> str:
        """The calculator's result right before the digits of a side's number."""
        if side.single is None:
            return ""
        start = side.offset + side.single.start
        digits = next(i for i, c in enumerate(side.single.written) if c in ".\\" or c.isdecimal())
        return self._notes.get(start + digits) or self._notes.get(start, "")

    def _continues(self, at: int, symbol: str) -> bool:
        """Whether a side goes on to its left, as in `n * (1 + 2) + 4`; the marker of a list item or of bold text is no
        operator, and an equation ends the one before it.
        """
        line = self._text.rfind("\n", 0, at) + 1
        before = self._text[max(line, at - _LOOK_BACK, self._judged_to) : at]
        if _LIST_MARKER.fullmatch(before):
            return False
        last = len(before.rstrip()) - 1
        if last < 0:
            return False
        if symbol in "({" and _FUNCTION.fullmatch(before):
            return True
        if self._text[at] in MINUS and _SIGN_AFTER_LETTER.fullmatch(before):
            return True
        if _MIXED.fullmatch(before):
            return True
        word = re.search(r"[^\W\d_]+(?=\s*$)", before)
        if word is not None and _WORDS_BEFORE.fullmatch(word[0]):
            return True
        return _OPEN_BEFORE.fullmatch(before, last) is not None

    def _doubtful(self, left: _Run, right: _Run, one: Side, other: Side) -> bool:
        """Whether an equation that seems wrong may be right in another reading."""
        text, result = self._text, other.single
        ends = {right.end, other.end, other.end if result is None else other.offset + result.end}
        if any(_DOUBTFUL_AFTER.match(text, end) for end in ends):
            return True
        if "\n" in text[left.end : right.start] and re.match(r"[.)]\s", text[right.end : right.end + 2]):
            return True  # no result, and the number of the next list item
        value, written = one.amount.value, other.amount.value
        if value is None or written is None or result is None:
            return False
        return _counts_otherwise(one, result, value, written) or _has_points_for_thousands(one, other, text)


def _ending(run: _Run) -> Side:
    read = ending(run.tokens or ())
    return Side(run.start, read, amount(read))


def _is_rewritten(one: Side, other: Side) -> bool:
    """Whether a number alone is surely meant to equal what follows: `7 * 5 = 35 = 5 * 7`, but not `3.33 = 3`."""
    if one.amount.kind or other.amount.kind:
        return False
    return other.single is None or (other.single.decimals == 0 and one.single is not None and one.single.decimals == 0)


def _counts(kind: str, result: str, *, attached: bool) -> bool:
    """Whether a result counts what the sum counts; a bare sum may have a result in any words or currency."""
    if kind == "":
        return result != "%" and not attached
    if kind in ("$", "€", "£", "¥", "₹"):
        return result in ("", kind)
    return f"{result} ".startswith(f"{kind} ")


def _counts_otherwise(one: Side, result: Term, value: Fraction, written: Fraction) -> bool:
    """Whether a result with a unit may be whole things, another unit, or a difference without its sign."""
    if not result.kind:
        return False
    if any(token.symbol == "/" for token in one.tokens) and written in (math.floor(value), math.ceil(value)):
        return True  # `7 / 2 = 3 boxes`
    if any(exact.agrees(v, written, result.decimals) for f in CONVERSIONS for v in (value * f, value / f)):
        return True
    return not result.money and written == -value  # `2010 - 2015 = 5 years`


def _has_points_for_thousands(one: Side, other: Side, text: str) -> bool:
    """Whether `1.000 + 500 = 1.500` is right with points between thousands."""
    sides = [text[side.start : side.end] for side in (one, other)]
    if "." not in "".join(sides):
        return False
    read = [tokens(side.replace(".", "")) for side in sides]
    return all(read) and amount(read[0] or []).value == amount(read[1] or []).value


def _written_at(side: Side) -> tuple[int, int]:
    """Where a result stands: its sign, currency and digits, or the whole of several numbers."""
    if side.single is None:
        return side.start, side.end
    sign = next((token.start for token in side.tokens if token.symbol == "-"), side.single.start)
    within = any(token.symbol == "(" and sign < token.start < side.single.start for token in side.tokens)
    return side.offset + (side.single.start if within else sign), side.offset + side.single.end


def _expected(one: Side, other: Side, written: str) -> str | None:
    value = one.amount.value
    if value is None or (other.single is None and not other.is_fraction):
        return None
    latex = written.lstrip(MINUS).startswith("\\") and "frac" in written
    if other.is_fraction or latex:
        sign, over, under = "-" if value < 0 else "", abs(value.numerator), value.denominator
        return f"{sign}\\frac{{{over}}}{{{under}}}" if latex else f"{sign}{over}/{under}"
    assert other.single is not None
    places, decimals = exact.short_decimals(value), other.single.decimals
    if places is None and decimals == 0:
        return None
    grouping = "," if "," in written else ""
    return exact.text(value, decimals if places is None else places, prefix=other.single.money, grouping=grouping)


def _in_one_line(written: str) -> str:
    """Without line breaks, and without the room of a calculator's note."""
    return re.sub(r"\s+", " ", re.sub(r" {6,}", "", written))


def _correct(one: Side, expected: str | None) -> str:
    value = one.amount.value
    if value is None:
        return "is undefined"
    if expected is None:
        return exact.about(value)
    return f"{'≈' if '.' in expected and exact.short_decimals(value) is None else '='} {expected}"
