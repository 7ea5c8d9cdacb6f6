"""A calculator as reward: every `a op b = c` in the text is recomputed, and wrong results are located."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.base import Reward
from nabla_agents.types import Rollout, Score, Span, Usage

_PLUS, _MINUS, _TIMES, _OVER = "+", "-−–", "*×·⋅∙∗✕xX", "/÷∕⁄"
_SPACE = r"[^\S\n]*"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
_SIGNED = rf"[{_MINUS}]?{_NUMBER}"
# The letter x multiplies only between two numbers; `0x10` is another notation.
_OPERATOR = rf"(?:[{_MINUS}{_PLUS}{_TIMES[:-2]}{_OVER}]|(?<!\b0)[xX](?={_SPACE}\d))"
# Each side of an equation is read whole and once, so the time is linear in the text, whatever it contains.
_SIDE = re.compile(rf"(?<![\w.,]){_SIGNED}(?:{_SPACE}{_OPERATOR}{_SPACE}{_SIGNED})*")
_EQUALS = re.compile(rf"{_SPACE}=\s*")
_FIRST_NUMBER = re.compile(_SIGNED)
_TOKEN = re.compile(rf"({_NUMBER})|([^\s\d])")
# What makes a number or a sum the part of something longer, which is not judged: `3 ^ 2 + 4`, `50%`, `3 1/2`, `3 R 1`.
_LIST_MARKER = re.compile(r"\s*(?:[-–*+•]|\(?\w{1,3}[.)])\s+")
_CONTINUED_BEFORE = re.compile(rf"(?:[{_MINUS}{_PLUS}{_TIMES[:-2]}{_OVER})\d^√%!|]|(?<![^\W\d_])[xX])\s*")
_BINARY_SIGN_BEFORE = re.compile(r"(?:^|.*\W)[^\W\d_]\s*", re.DOTALL)
_CONTINUED_AFTER = re.compile(r"[\w%^(]|[.,:]\d|[^\S\n]+(?:\d+[/⁄]\d|(?:[rR]|rem|remainder)\b)")
_LOOK_BACK = 64  # characters before an equation that decide whether it is part of a longer one
_MAX_DIGITS, _MAX_TERMS = 30, 40  # beyond, it is no schoolbook arithmetic, and costs time


@dataclass(frozen=True)
class _Equation:
    start: int  # of the written result
    end: int
    left: str
    written: str
    value: Fraction | None  # of the left side; None where it is undefined (division by zero)
    rest: str = ""  # what follows the written result on the right side, as in `= 3/4` or `= 12 + 5 = 17`

    @cached_property
    def right(self) -> bool:
        if self.value is None:
            return False
        written, decimals = _number(self.written), _decimals(self.written)
        if written == self.value or (decimals > 0 and _rounded(self.value, decimals) == written):
            return True
        return self.rest != "" and _value(self.written + self.rest) == self.value

    @cached_property
    def expected(self) -> str | None:
        """The result as it should read, in the written form; None where there is none, or no short decimal of it."""
        if self.value is None or (self.rest.strip() and self.rest.strip()[0] in _OVER):
            return None
        written = _decimals(self.written)
        exact = next((d for d in range(5) if _rounded(self.value, d) == self.value), None)
        if exact is None and written == 0:
            return None
        return _text(self.value, written if exact is None else exact, "," if "," in self.written else "")


class ArithmeticSteps(Reward):
    """Value in [0, 1]: the share of equations up to the first wrong one; verified when all are right.

    Each equation gives a span: wrong results carry the expected text, and `credit` nats of steering in the gradient.
    With `suggest=False` the tool only says where a result is wrong, not what is right. A text without equations is
    not judged (NaN). Nothing is evaluated as code. Costs no model pass.
    """

    def __init__(self, *, credit: float = 10.0, suggest: bool = True) -> None:
        if not credit >= 0:
            raise ConfigurationError(f"ArithmeticSteps credit is {credit!r}; expected nats of at least 0.")
        self.credit, self.suggest = credit, suggest

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return [self.judge(r.text) for r in rollouts]

    def judge(self, text: str) -> Score:
        """The verdict on one text."""
        equations = _equations(text)
        called = Usage(reward_calls=1)
        if not equations:
            return Score.not_judged("no equation `a op b = c` found", called)
        first_wrong = next((i for i, e in enumerate(equations) if not e.right), len(equations))
        value, all_right = first_wrong / len(equations), first_wrong == len(equations)
        wrong = [f"{e.left} = {e.expected or 'undefined'}, not {e.written}" for e in equations if not e.right]
        return Score(
            value=value,
            verdict=value,
            verified=all_right,
            spans=tuple(self._span(e) for e in equations),
            explanation="; ".join(wrong) or f"{len(equations)} equations right",
            usage=called,
        )

    def _span(self, equation: _Equation) -> Span:
        if equation.right:
            return Span(equation.start, equation.end, 1.0, explanation="right", credit=self.credit)
        explanation = f"{equation.left} = {equation.expected or 'undefined'}"
        expected = equation.expected if self.suggest else None
        return Span(equation.start, equation.end, -1.0, expected, explanation, self.credit)


def _equations(text: str) -> list[_Equation]:
    found: list[_Equation] = []
    left: re.Match[str] | None = None
    for right in _SIDE.finditer(text):
        if left is not None and _EQUALS.fullmatch(text, left.end(), right.start()):
            judged_to = found[-1].end + len(found[-1].rest) if found else 0
            equation = _equation(text, left, right, judged_to)
            if equation is not None:
                found.append(equation)
        left = right
    return found


def _equation(text: str, left: re.Match[str], right: re.Match[str], judged_to: int) -> _Equation | None:
    """The equation of two sides, or None where they are not a whole one: a mere number, or part of something longer."""
    if not (_short(left) and _short(right)) or _FIRST_NUMBER.fullmatch(left.group()):
        return None
    if _continues(text, left, judged_to):
        return None
    written = _FIRST_NUMBER.match(right.group())
    assert written is not None  # a side begins with a number
    start, end = right.start(), right.start() + written.end()
    rest = right.group()[written.end() :]
    equation = _Equation(start, end, left.group(), written.group(), _value(left.group()), rest)
    open_end = _CONTINUED_AFTER.match(text, right.end()) is not None
    if open_end and not (rest and equation.right):
        return None
    return equation


def _short(side: re.Match[str]) -> bool:
    numbers = re.findall(_NUMBER, side.group()) if len(side.group()) < 4 * _MAX_DIGITS * _MAX_TERMS else []
    return 0 < len(numbers) <= _MAX_TERMS and all(len(n) <= _MAX_DIGITS for n in numbers)


def _continues(text: str, side: re.Match[str], judged_to: int) -> bool:
    """Whether a side goes on to its left, as in `(1 + 2) * 3 + 4`; the marker of a list item is no operator, and an
    equation ends the one before it.
    """
    at = side.start()
    before = text[max(text.rfind("\n", 0, at) + 1, at - _LOOK_BACK, judged_to) : at]
    if _LIST_MARKER.fullmatch(before):
        return False
    last = len(before.rstrip()) - 1
    if last < 0:
        return False
    if side.group()[0] in _MINUS and _BINARY_SIGN_BEFORE.fullmatch(before):
        return True  # `x -3 + 5`
    return _CONTINUED_BEFORE.fullmatch(before, last) is not None


def _value(expression: str) -> Fraction | None:
    """The exact value of `a op b op c …`, products before sums; None on division by zero."""
    numbers: list[Fraction] = []
    pending, sign = _PLUS, 1
    expect_number = True
    for match in _TOKEN.finditer(expression):
        number, operator = match[1], match[2]
        if number is not None:
            value = sign * _number(number)
            if pending in _TIMES:
                numbers[-1] *= value
            elif pending in _OVER:
                if value == 0:
                    return None
                numbers[-1] /= value
            else:
                numbers.append(-value if pending in _MINUS else value)
            expect_number, sign = False, 1
        elif expect_number:
            sign = -1
        else:
            pending, expect_number = operator, True
    return sum(numbers, Fraction(0))


def _number(text: str) -> Fraction:
    text = text.replace(",", "").replace("−", "-").replace("–", "-")
    return Fraction(text) if "." in text else Fraction(int(text))


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _rounded(value: Fraction, decimals: int) -> Fraction:
    scale = 10**decimals
    return Fraction((abs(value) * scale + Fraction(1, 2)).__floor__(), scale) * (1 if value >= 0 else -1)


def _text(value: Fraction, decimals: int, grouping: str) -> str:
    """The rounded value in decimal digits, every one of them exact."""
    scaled = abs(_rounded(value, decimals)) * 10**decimals
    whole, part = divmod(int(scaled), 10**decimals)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole:{grouping}d}" + (f".{part:0{decimals}d}" if decimals else "")
