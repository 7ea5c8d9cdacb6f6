"""A calculator as reward: every `a op b = c` in the text is recomputed, and wrong results are located."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nabla_agents.answers import stated_answer
from nabla_agents.errors import ConfigurationError
from nabla_agents.rewards.tools.answer import same
from nabla_agents.rewards.tools.equations import Equation, equations
from nabla_agents.rewards.tools.text import TextReward
from nabla_agents.types import Score, Span, Usage

_STATES_AN_ANSWER = re.compile(r"####|\\boxed|(?i:\banswer\b)")


class ArithmeticSteps(TextReward):
    """Value in [0, 1]: the share of equations up to the first wrong one; verified when all are right: whether
    they are the right ones for the question is beyond a calculator.

    Understood are + - × ÷ in their many signs and in LaTeX, signed numbers with thousands separators and decimals,
    fractions, percent (`20% of 50 = 10`), a currency, a unit that all terms share (`3 km + 4 km = 7 km`), chains
    (`3 * 4 = 12 + 5 = 17`), sums on the right, and a calculator's notes (`<<3*4=12>>`). A result may be rounded to
    the decimals it is written with. What is not surely arithmetic is left out: brackets, powers, variables, mixed or
    converted units, remainders, other bases, moduli.

    Nor does it vouch where the text states a final answer (boxed, after `####` or `Answer:`) that is surely the result
    of none of its equations: then `verified` is None. The value stays, and the answer has no span: a right solution may
    convert, round, or take its last step in words.

    Each equation gives a span: wrong results carry the expected text, and `credit` nats of steering in the gradient.
    With `suggest=False` the tool only says where a result is wrong, not what is right. A text without equations is
    not judged (NaN), nor is one above `max_characters`. Nothing is evaluated as code; the time is linear in the text,
    at most a second for 100,000 characters. Costs no model pass.

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
        first_wrong = next((i for i, e in enumerate(found) if not e.right), len(found))
        value, all_right = first_wrong / len(found), first_wrong == len(found)
        said = [f"{e.left} = {e.expected or 'undefined'}, not {e.written}" for e in found if not e.right]
        answer = _unsupported_answer(text, found)
        if all_right and answer is not None:
            said = [f"{len(found)} equations right, but none results in the answer {answer[:40]!r}"]
        return Score(
            value=value,
            verdict=value,
            verified=None if all_right and answer is not None else all_right,
            spans=tuple(self._span(e) for e in found),
            explanation="; ".join(said) or f"{len(found)} equations right",
            usage=called,
        )

    def _span(self, equation: Equation) -> Span:
        if equation.right:
            return Span(equation.start, equation.end, 1.0, explanation="right", credit=self.credit)
        explanation = f"{equation.left} = {equation.expected or 'undefined'}"
        expected = equation.expected if self.suggest else None
        return Span(equation.start, equation.end, -1.0, expected, explanation, self.credit)


def _unsupported_answer(text: str, found: Sequence[Equation]) -> str | None:
    """The final answer, where the text marks one that surely differs from the result of every equation."""
    answer = stated_answer(text) if _STATES_AN_ANSWER.search(text) else None
    if answer is None or not all(same(result, answer) is False for result in {e.written for e in found}):
        return None
    return answer
