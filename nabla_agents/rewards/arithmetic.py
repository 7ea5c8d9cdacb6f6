"""A calculator as reward: every `a op b = c` in the text is recomputed, and wrong results are located."""

from __future__ import annotations

from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.equations import Equation, equations
from nabla_agents.rewards.text import TextReward
from nabla_agents.types import Score, Span, Usage


class ArithmeticSteps(TextReward):
    """Value in [0, 1]: the share of equations up to the first wrong one; verified when all are right: whether
    they are the right ones for the question is beyond a calculator.

    Understood are + - × ÷ in their many signs and in LaTeX, signed numbers with thousands separators and decimals,
    fractions, percent (`20% of 50 = 10`), a currency, a unit that all terms share (`3 km + 4 km = 7 km`), chains
    (`3 * 4 = 12 + 5 = 17`), sums on the right, and a calculator's notes (`<<3*4=12>>`). A result may be rounded to
    the decimals it is written with. What is not surely arithmetic is left out: brackets, powers, variables, mixed or
    converted units, remainders, other bases, moduli.

    Each equation gives a span: wrong results carry the expected text, and `credit` nats of steering in the gradient.
    With `suggest=False` the tool only says where a result is wrong, not what is right. A text without equations is
    not judged (NaN). Nothing is evaluated as code; the time is linear in the text. Costs no model pass.
    """

    def __init__(self, *, credit: float = 10.0, suggest: bool = True) -> None:
        if not 0 <= credit < float("inf"):
            raise ConfigurationError(f"ArithmeticSteps credit is {credit!r}; expected nats of at least 0.")
        self.credit, self.suggest = credit, suggest

    def judge(self, text: str) -> Score:
        found = equations(text)
        called = Usage(reward_calls=1)
        if not found:
            return Score.not_judged("no equation `a op b = c` found", called)
        first_wrong = next((i for i, e in enumerate(found) if not e.right), len(found))
        value, all_right = first_wrong / len(found), first_wrong == len(found)
        wrong = [f"{e.left} = {e.expected or 'undefined'}, not {e.written}" for e in found if not e.right]
        return Score(
            value=value,
            verdict=value,
            verified=all_right,
            spans=tuple(self._span(e) for e in found),
            explanation="; ".join(wrong) or f"{len(found)} equations right",
            usage=called,
        )

    def _span(self, equation: Equation) -> Span:
        if equation.right:
            return Span(equation.start, equation.end, 1.0, explanation="right", credit=self.credit)
        explanation = f"{equation.left} = {equation.expected or 'undefined'}"
        expected = equation.expected if self.suggest else None
        return Span(equation.start, equation.end, -1.0, expected, explanation, self.credit)
