"""A calculator as reward: every `a op b = c` in the text is recomputed, and wrong results are located."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.base import Reward
from nabla_agents.types import Rollout, Score, Span, Usage

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SIGNED = rf"[-−]?(?:{_NUMBER})"
_OPERATOR = r"[-+*/×÷·−]"
# The result stands in a look-ahead, so that in `3 * 4 = 12 + 5 = 17` the second equation is found too.
_EQUATION = re.compile(
    rf"(?<![\w.,])({_SIGNED}(?:\s*{_OPERATOR}\s*{_SIGNED})+)\s*=(?=\s*(?P<result>{_SIGNED})(?![\w%]|[.,]\d))"
)
_TOKEN = re.compile(rf"({_NUMBER})|({_OPERATOR})|\s+")
_MAX_DIGITS = 30  # longer numbers are not schoolbook arithmetic, and cost time


@dataclass(frozen=True)
class _Equation:
    start: int  # of the written result
    end: int
    left: str
    written: str
    value: Fraction | None  # of the left side; None where it is undefined (division by zero)

    @property
    def right(self) -> bool:
        if self.value is None:
            return False
        decimals = len(self.written.partition(".")[2])
        written = _number(self.written)
        return written == self.value or (decimals > 0 and _rounded(self.value, decimals) == written)

    @property
    def expected(self) -> str | None:
        """The result as it should read, in the written form; None for a fraction that has no short decimal."""
        if self.value is None:
            return None
        grouped = "," if "," in self.written else ""
        if self.value.denominator == 1:
            return f"{self.value.numerator:{grouped}d}"
        for decimals in range(1, 5):
            if _rounded(self.value, decimals) == self.value:
                return f"{float(self.value):{grouped}.{decimals}f}"
        return None


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
    found = []
    for match in _EQUATION.finditer(text):
        before = text[: match.start()].rstrip(" \t")
        if (before and before[-1] in "+-*/×÷·−^)(") or len(match.group()) > 40 * _MAX_DIGITS:
            continue  # part of a longer expression, which these equations are not
        if any(len(number) > _MAX_DIGITS for number in re.findall(r"[\d.,]+", match.group() + match["result"])):
            continue
        start, end = match.span("result")
        found.append(_Equation(start, end, match[1].strip(), match["result"], _value(match[1])))
    return found


def _value(expression: str) -> Fraction | None:
    """The exact value of `a op b op c …`, products before sums; None on division by zero."""
    numbers: list[Fraction] = []
    pending, sign = "+", 1
    expect_number = True
    for match in _TOKEN.finditer(expression):
        number, operator = match[1], match[2]
        if number is not None:
            value = sign * _number(number)
            if pending in "*×·":
                numbers[-1] *= value
            elif pending in "/÷":
                if value == 0:
                    return None
                numbers[-1] /= value
            else:
                numbers.append(-value if pending in "-−" else value)
            expect_number, sign = False, 1
        elif operator is not None:
            if expect_number:
                sign = -1
            else:
                pending, expect_number = operator, True
    return sum(numbers, Fraction(0))


def _number(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace("−", "-"))


def _rounded(value: Fraction, decimals: int) -> Fraction:
    scale = 10**decimals
    return Fraction((abs(value) * scale + Fraction(1, 2)).__floor__(), scale) * (1 if value >= 0 else -1)
