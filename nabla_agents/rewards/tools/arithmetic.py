"""A calculator as reward: every equation of numbers in the text is recomputed, and wrong results are located."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nabla_agents.errors import ConfigurationError
from nabla_agents.final_answer import stated_answer
from nabla_agents.rewards.remark import remark
from nabla_agents.rewards.tools.answer import same
from nabla_agents.rewards.tools.equations import Equation, equations
from nabla_agents.rewards.tools.text import TextReward
from nabla_agents.types import Score, Span, Usage

_STATES_AN_ANSWER = re.compile(r"####|\\boxed|(?i:\banswer\b)")


class ArithmeticSteps(TextReward):
    r"""Value in [0, 1]; verified when all equations are right: whether they are the right ones for the question is
    beyond a calculator.

    value: of n equations, of which r are right, k of them before the first wrong one: (k + r) / 2n. It is 1 only if all
    are right and 0 only if none is, and each wrong one more makes it smaller, early ones most.

    Understood are + - × ÷ in their many signs and in LaTeX, brackets (`3(4+5)` and `(2)(3)` multiply), powers with
    whole exponents up to 64, nested fractions, signed numbers with thousands separators and decimals, percent (`20% of
    50 = 10`), a currency, a unit that all terms share (`3 km + 4 km = 7 km`), and a calculator's notes (`<<3*4=12>>`).
    Of a chain each neighbouring pair is compared: `(3+4)*5 = 7*5 = 35`; a chain may also go on from a result, `3 * 4 =
    12 + 5 = 17`.

    Right is what is exactly right; a result that is rounded to the decimals it is written with (`10 / 3 = 3.33`, but
    not `= 3.34`, and not `10 / 3 = 3`); what a calculator with binary floats shows (`14.999999999999998` for 15, and
    14.99 right behind a note that says so); and a whole number that is the nearest one where all decimal numbers in the
    sum have two decimals or more and the sum could be that number before they were rounded: `18 * 3.33 = 60`, but not
    `3 * 1.99 = 6`.

    A sum of capital letters is read where the text itself has set each of them to one number: `A = 3 * 4 = 12`, `B =
    5`, `A - B = 12 - 5`.

    What is not surely arithmetic is left out: other variables, mixed or converted units, mixed numbers, remainders,
    other bases, moduli, `6/2(1+2)`, `-2^2`, `25 / 1/3`, numbers of more than 30 digits.

    Nor does it vouch where the text states a final answer (boxed, after `####` or `Answer:`) that is surely the result
    of none of its equations: then `verified` is None. The value stays, and the answer has no span: a right solution may
    convert, round, or take its last step in words.

    Each equation gives a span with `credit` nats of steering in the gradient: its result, or all of a right side of
    several numbers. Wrong results carry the expected text where four decimals write it exactly, or as many as the
    result has. With `suggest=False` the tool only says where a result is wrong, not what is right. A text without
    equations is not judged (NaN), nor is one above `max_characters`. Nothing is evaluated as code; the time is linear
    in the text, a fraction of a millisecond for each equation. Costs no model pass.

    Raises:
        ConfigurationError: when made: a credit or a limit that is none.
    """

    def __init__(self, *, credit: float = 10.0, suggest: bool = True, max_characters: int = 100_000) -> None:
        if not 0 <= credit < float("inf"):
            raise ConfigurationError(f"ArithmeticSteps credit is {credit!r}; expected nats of at least 0.")
        if max_characters < 1:
            raise ConfigurationError(f"ArithmeticSteps max_characters is {max_characters!r}; expected at least 1.")
        self.credit, self.suggest, self.max_characters = credit, suggest, max_characters

    def judge(self, text: str) -> Score:
        called = Usage(reward_calls=1)
        if len(text) > self.max_characters:
            return Score.not_judged(f"the text has {len(text)} characters, limit {self.max_characters}", called)
        found = equations(text)
        if not found:
            return Score.not_judged("no equation `a op b = c` found", called)
        wrong = [e for e in found if not e.right]
        answer = None if wrong else _unsupported_answer(text, found)
        messages = [_objection(e) for e in wrong]
        if answer is not None:
            messages = [f"{len(found)} equations right, but none results in the answer {answer[:40]!r}"]
        value = _value(found)
        return Score(
            value=value,
            verdict=value,
            verified=False if wrong else None if answer is not None else True,
            spans=tuple(self._span(e) for e in found),
            explanation="; ".join(messages) or f"{len(found)} equations right",
            usage=called,
            feedback=remark(self._feedback(wrong) if wrong else ". ".join(messages)),
        )

    def _feedback(self, wrong: Sequence[Equation]) -> str:
        """The equations that are wrong, and, unless that is not to be said, what is right."""
        if self.suggest:
            return f"Wrong: {'; '.join(map(_objection, wrong))}."
        return f"Wrong: {'; '.join(f'{e.left} is not {e.written}' for e in wrong)}."

    def _span(self, equation: Equation) -> Span:
        if equation.right:
            return Span(equation.start, equation.end, 1.0, explanation="right", credit=self.credit)
        expected = equation.expected if self.suggest else None
        explanation = f"{equation.left} {equation.correct}"
        return Span(equation.start, equation.end, -1.0, expected, explanation, self.credit)


def _value(found: Sequence[Equation]) -> float:
    first_wrong = next((i for i, e in enumerate(found) if not e.right), len(found))
    return (first_wrong + sum(e.right for e in found)) / (2 * len(found))


def _objection(equation: Equation) -> str:
    """What is wrong: `3 + 4 = 7, not 8`, and of several numbers what they come to, `3 + 4 = 7, not 2 + 6 = 8`."""
    return f"{equation.left} {equation.correct}, not {equation.written} {equation.comes_to}".rstrip()


def _unsupported_answer(text: str, found: Sequence[Equation]) -> str | None:
    """The final answer, where the text marks one that surely differs from the result of every equation."""
    answer = stated_answer(text) if _STATES_AN_ANSWER.search(text) else None
    if answer is None or not all(same(result, answer) is False for result in {e.written for e in found}):
        return None
    return answer
