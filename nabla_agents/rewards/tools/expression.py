"""The value of a side of an equation, and what it counts: recursive descent over tokens, exact and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from nabla_agents.rewards.tools.tokens import Term, Token

MAX_BITS, MAX_POWER, MAX_DEPTH = 8192, 64, 24
_MATCHING = {")": "(", "}": "{"}


class Unsure(Exception):
    """The tokens are no whole expression, or could be read otherwise, or lead to huge numbers."""


@dataclass(frozen=True)
class Amount:
    """`value` None: something is divided by zero. `kind`: what it counts, as of a `Term`.

    `slack`: how far the value moves when every decimal number in it is taken for a rounded one; `coarse`: one of those
    has a single decimal. `part`: a share of something, `20% of 10`, which is not added to anything without brackets.
    """

    value: Fraction | None
    kind: str = ""
    slack: float = 0.0
    coarse: bool = False
    part: bool = False


def beginning(tokens: Sequence[Token], *, chained: bool) -> Sequence[Token]:
    """The tokens that a left side begins with, without brackets of the text around it: `2) 3 + 4`, `(3 + 4`.

    `chained`: it was the right side of an equation, which a bracket too many at its end does not change.

    Raises:
        Unsure: a bracket within is never closed.
    """
    _, closing = _unmatched(tokens)
    if closing and chained and closing[0] == len(tokens) - len(closing):
        tokens = tokens[: closing[0]]
    elif closing:
        tokens = tokens[closing[-1] + 1 :]
    return _opened(tokens)


def ending(tokens: Sequence[Token]) -> Sequence[Token]:
    """The tokens that a right side ends with, without brackets of the text around it: `7)` of `(3 + 4 = 7)`.

    Raises:
        Unsure: a bracket within is never closed.
    """
    _, closing = _unmatched(tokens)
    return _opened(tokens[: closing[0]] if closing else tokens)


def _opened(tokens: Sequence[Token]) -> Sequence[Token]:
    opening, _ = _unmatched(tokens)
    if opening != [*range(len(opening))] or any(tokens[i].symbol != "(" for i in opening):
        raise Unsure
    return tokens[len(opening) :]


def _unmatched(tokens: Sequence[Token]) -> tuple[list[int], list[int]]:
    """The places of brackets that are never closed, and of those that close nothing."""
    if not any(token.symbol in "(){}" for token in tokens):
        return [], []
    opening: list[int] = []
    closing: list[int] = []
    for i, token in enumerate(tokens):
        if token.symbol in _MATCHING.values():
            opening.append(i)
        elif token.symbol in _MATCHING:
            if opening and tokens[opening[-1]].symbol == _MATCHING[token.symbol]:
                opening.pop()
            else:
                closing.append(i)
    return opening, closing


def amount(tokens: Sequence[Token], *, bare: bool = False) -> Amount:
    """What the tokens come to; `bare`: the first term's currency sign is none of its own.

    Raises:
        Unsure: it is not surely that.
    """
    reader = _Reader(tokens, bare=bare)
    result = reader.sum(0)
    if reader.at != len(tokens):
        raise Unsure
    return result


class _Reader:
    """Reads from left to right; each method returns the amount that begins at `at`."""

    def __init__(self, tokens: Sequence[Token], *, bare: bool) -> None:
        self._tokens, self.at, self._bare = tokens, 0, bare

    def _next(self) -> str:
        return self._tokens[self.at].symbol if self.at < len(self._tokens) else ""

    def _take(self, symbol: str = "") -> Token:
        if self.at == len(self._tokens) or (symbol and self._next() != symbol):
            raise Unsure
        self.at += 1
        return self._tokens[self.at - 1]

    def sum(self, depth: int) -> Amount:
        if depth > MAX_DEPTH:
            raise Unsure
        total = self._product(depth)
        while self._next() in ("+", "-"):
            sign = -1 if self._take().symbol == "-" else 1
            total = _added(total, self._product(depth), sign)
        return total

    def _product(self, depth: int) -> Amount:
        product, divides, spaced = self._factor(depth), False, False
        while (symbol := self._next()) in ("*", "/", "("):
            if symbol == "(" and (divides or self._tokens[self.at - 1].symbol == "}"):
                raise Unsure  # `6 / 2(1 + 2)` is 9 or 1
            if symbol == "/" and divides and spaced and self._is_fraction(self.at - 1):
                raise Unsure  # `25 / 1/3` is meant to be 75
            if symbol != "(":
                spaced = self._take().spaced
            divides = symbol == "/"
            other = self._factor(depth)
            product = _divided(product, other) if divides else _multiplied(product, other)
        return product

    def _is_fraction(self, at: int) -> bool:
        """Whether there is something like `1/3`, without spaces."""
        over, slash, *under = self._tokens[at : at + 3]
        numbers = [token.term for token in (over, *under)]
        whole = all(n is not None and n.written.isdecimal() for n in numbers)
        return len(numbers) == 2 and whole and not slash.spaced

    def _factor(self, depth: int) -> Amount:
        if self._next() in ("+", "-"):
            sign = -1 if self._take().symbol == "-" else 1
            number = self._next() == "1"
            inner = self._factor(depth)
            if number and self._tokens[self.at - 1].symbol == "^" and self._tokens[self.at - 1].power % 2 == 0:
                raise Unsure  # `-2^2` is -4 to some, and 4 to others
            return replace(inner, value=None if inner.value is None else sign * inner.value)
        base = self._operand(depth)
        if self._next() != "^":
            return base
        signed = self._tokens[self.at - 1].term
        power = self._take().power
        if self._next() == "^" or (signed and signed.value is not None and signed.value < 0 and power % 2 == 0):
            raise Unsure
        return _raised(base, power)

    def _operand(self, depth: int) -> Amount:
        token = self._take()
        if token.term is not None:
            return self._number(token.term)
        if token.symbol == "(":
            inner = self.sum(depth + 1)
            unit = self._take(")").unit
            if unit and inner.kind not in ("", unit):
                raise Unsure
            return replace(inner, kind=unit or inner.kind, part=False)
        if token.symbol == "{":
            over = self.sum(depth + 1)
            self._take("|")
            under = self.sum(depth + 1)
            self._take("}")
            return _divided(over, under)
        raise Unsure

    def _number(self, term: Term) -> Amount:
        kind = "" if self._bare and self.at == 1 else term.kind
        slack = 0.5 * 10.0**-term.decimals if term.decimals else 0.0
        return Amount(term.value, kind, slack, coarse=term.decimals == 1)


def _added(one: Amount, other: Amount, sign: int) -> Amount:
    if one.kind != other.kind or one.part or other.part:
        raise Unsure
    value = None if one.value is None or other.value is None else _bounded(one.value + sign * other.value)
    return Amount(value, one.kind, one.slack + other.slack, one.coarse or other.coarse)


def _multiplied(one: Amount, other: Amount) -> Amount:
    kind, part = _kind_of_product(one, other)
    if one.value is None or other.value is None:
        return Amount(None, kind)
    value = _bounded(one.value * other.value)
    a, b = _size(one.value), _size(other.value)
    slack = a * other.slack + b * one.slack + one.slack * other.slack if one.slack or other.slack else 0.0
    if part:
        value, slack = value / 100, slack / 100
    return Amount(value, kind, slack, one.coarse or other.coarse, part or one.part or other.part)


def _divided(one: Amount, other: Amount) -> Amount:
    if other.kind:
        raise Unsure
    kind, part = _kind_of_product(one, other)
    if one.value is None or other.value is None or other.value == 0:
        return Amount(None, kind)
    value = _bounded(one.value / other.value)
    slack = 0.0
    if one.slack or other.slack:
        slack = (one.slack + _size(value) * other.slack) / max(_size(other.value) - other.slack, 1e-300)
    if part:
        value, slack = value / 100, slack / 100
    return Amount(value, kind, slack, one.coarse or other.coarse, part or one.part or other.part)


def _raised(base: Amount, power: int) -> Amount:
    if base.kind or abs(power) > MAX_POWER:
        raise Unsure
    if base.value is None or (base.value == 0 and power < 0):
        return Amount(None)
    if max(base.value.numerator.bit_length(), base.value.denominator.bit_length()) * abs(power) > MAX_BITS:
        raise Unsure
    value = base.value**power
    slack = 0.0
    if base.slack and base.value:
        slack = abs(power) * _size(value) / _size(base.value) * base.slack
    return Amount(value, "", slack, base.coarse)


def _kind_of_product(one: Amount, other: Amount) -> tuple[str, bool]:
    """What a product or quotient counts, and whether it is a share of something."""
    kinds = [one.kind, other.kind]
    if "%" in kinds:
        kinds.remove("%")
        if kinds[0] == "%" or one.part or other.part:
            raise Unsure
        return kinds[0], True
    if one.kind and other.kind:
        raise Unsure
    return one.kind or other.kind, False


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Unsure
    return value


def _size(value: Fraction) -> float:
    try:
        return abs(float(value))
    except OverflowError:
        return float("inf")
