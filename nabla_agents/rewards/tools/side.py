"""One side of an equation, and whether two agree as people write them: exactly, rounded, or step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nabla_agents.rewards.tools import exact
from nabla_agents.rewards.tools.expression import Amount, amount
from nabla_agents.rewards.tools.tokens import Term, Token


@dataclass(frozen=True)
class Side:
    """Its tokens, whose places count from `offset`, and what they come to."""

    offset: int
    tokens: Sequence[Token]
    amount: Amount

    @property
    def start(self) -> int:
        return self.offset + self.tokens[0].start

    @property
    def end(self) -> int:
        return self.offset + self.tokens[-1].end

    @cached_property
    def single(self) -> Term | None:
        """Its only number, which may have brackets and a sign of its own."""
        terms = [token.term for token in self.tokens if token.term is not None]
        plain = len(terms) == 1 and all(token.symbol in "()1-" for token in self.tokens)
        return terms[0] if plain and sum(token.symbol == "-" for token in self.tokens) < 2 else None

    @property
    def is_fraction(self) -> bool:
        """Whether it is one whole number over another."""
        return "".join(t.symbol for t in self.tokens) in ("1/1", "{1|1}") and all(
            t.term is None or (t.term.decimals == 0 and not t.term.kind) for t in self.tokens
        )

    @property
    def first(self) -> Term | None:
        """The number that it begins with, as 12 in `12 + 5`; None behind a bracket."""
        follows = self.tokens[1].symbol if len(self.tokens) > 1 else ""
        return self.tokens[0].term if follows and follows in "+-*/" else None

    def bare(self) -> Side:
        """Without the currency sign of its first term."""
        return Side(self.offset, self.tokens, amount(self.tokens, bare=True))


def has_money_once(tokens: Sequence[Token]) -> bool:
    """Whether the first term alone has a currency sign, which may open a formula: `$3 + 4 = 7$`."""
    money = [token.term.money != "" for token in tokens if token.term is not None]
    return len(money) > 1 and tokens[0].term is not None and money[0] and not any(money[1:])


def agree(left: Side, right: Side, note: str = "") -> bool:
    """Whether the right side states the left one; `note`: a calculator's result that the right side copies."""
    value, result = left.amount.value, right.amount.value
    if value is None or result is None:
        return False
    if value == result:
        return True
    if right.single is not None:
        return _states(right.single, result, left.amount) or _copies(right.single, value, result, note)
    if (
        right.first is not None
        and right.first.value is not None
        and _states(right.first, right.first.value, left.amount)
    ):
        return True  # it goes on from the result: `3 * 4 = 12 + 5 = 17`
    if left.single is not None and left.single.decimals:
        return exact.agrees(result, value, left.single.decimals)
    if exact.short_decimals(value) is not None:
        divided = any(token.symbol in "/|" for token in left.tokens)
        if right.amount.coarse or not divided:
            return False
    return right.amount.slack > 0 and _distance(value, result) <= right.amount.slack


def _states(term: Term, written: Fraction, counted: Amount) -> bool:
    """Whether a number states the amount: exactly, rounded to its decimals, as binary floats have it, or in whole
    numbers where the amount comes from numbers that are rounded themselves (`18 * 3.33 = 60`).
    """
    value = counted.value
    assert value is not None
    if exact.agrees(value, written, term.decimals):
        return True
    if exact.is_float_of(value, term.written):
        return (value < 0) == (written < 0)
    whole = term.decimals == 0 and counted.slack > 0 and not counted.coarse
    return whole and exact.rounded(value, 0) == written and _distance(value, written) <= counted.slack


def _copies(term: Term, value: Fraction, written: Fraction, note: str) -> bool:
    """Whether it is what a calculator notes, cut off: `<<4.2+9.45+1.35=14.999999999999998>>14.99`."""
    if not note or not term.decimals or not exact.is_float_of(value, note):
        return False
    return exact.cut_off(exact.number(exact.unsigned(note)), term.decimals) == abs(written)


def _distance(one: Fraction, other: Fraction) -> float:
    try:
        return float(abs(one - other))
    except OverflowError:
        return math.inf
