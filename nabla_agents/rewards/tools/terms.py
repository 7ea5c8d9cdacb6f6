r"""Sums and products as people write them: `3 km + 4 km`, `$5 × 3`, `20% of 50`, `\frac{1}{2} + 0.25`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nabla_agents.rewards.tools import exact

MAX_DIGITS, MAX_TERMS = 30, 40  # beyond, it is no schoolbook arithmetic, and costs time
PLUS, TIMES, OVER = "+", "*×·⋅∙∗✕xX", "/÷∕⁄"
SYMBOLS = exact.MINUS + PLUS + TIMES[:-2] + OVER
SPACE = r"[^\S\n]*+"
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\[dt]?frac\{(?P<over>\d+)\}\{(?P<under>\d+)\}"
_MONEY = rf"(?:\\?(?P<money>[$€£¥₹]){SPACE})"
# One to three words; a single letter is a variable, or the `x` that multiplies.
_UNIT = rf"(?P<unit>%|(?:{SPACE}[^\W\d_]{{2,20}}(?:/[^\W\d_]{{1,20}})?+){{1,3}})"
# The letter x multiplies only between two numbers; `0x10` is another notation.
_OPERATOR = (
    rf"(?:{SPACE}(?:[{exact.MINUS}{PLUS}{TIMES[:-2]}{OVER}]|(?<!\b0)[xX](?={SPACE}[\d$])|\\(?:times|cdot|div)\b)"
    rf"|(?<=%){SPACE}of\b){SPACE}"
)
_TERM = rf"[{exact.MINUS}]?{_MONEY}?[{exact.MINUS}]?(?:{_FRACTION}|{_NUMBER}){_UNIT}?"
_PLAIN = re.sub(r"\?P<\w+>", "?:", _TERM)
# A side of an equation is read whole and once, so the time is linear in the text, whatever it contains.
SIDE = re.compile(rf"(?<![\w.,])(?<!\d:){_PLAIN}(?:{_OPERATOR}{_PLAIN})*+")
_NAMED = f"(?P<written>{_TERM.replace(_NUMBER, f'(?P<number>{_NUMBER})')})"
_FIRST, _NEXT = re.compile(f"(?P<operator>){_NAMED}"), re.compile(f"(?P<operator>{_OPERATOR}){_NAMED}")


@dataclass(frozen=True)
class Term:
    """One operand. `kind` is what it counts: nothing, a currency sign, `%`, or words in the singular."""

    operator: str  # one of + - * /
    written: str  # sign, currency and number, as in the text
    end: int  # of `written`, from the start of the side
    value: Fraction | None  # None: a fraction over 0
    money: str
    kind: str
    attached: bool  # its unit follows without a space

    @property
    def decimals(self) -> int:
        return exact.decimals(self.written)


@dataclass(frozen=True)
class Side:
    """The terms of one side of an equation."""

    terms: tuple[Term, ...]

    @cached_property
    def value(self) -> Fraction | None:
        """Products before sums, percent as hundredths; None where something is divided by zero."""
        sums: list[Fraction] = []
        for term in self.terms:
            if term.value is None or (term.operator == "/" and term.value == 0):
                return None
            value = term.value / 100 if term.kind == "%" else term.value
            if term.operator == "*":
                sums[-1] *= value
            elif term.operator == "/":
                sums[-1] /= value
            else:
                sums.append(-value if term.operator == "-" else value)
        return sum(sums, Fraction(0)) * (100 if self.kind == "%" else 1)

    @cached_property
    def kind(self) -> str | None:
        """What the whole counts; None where that is not sure: `3 km + 4`, `$2 × $3`, `50% + 1`."""
        products: list[list[str]] = []
        for term in self.terms:
            if term.operator in "+-":
                products.append([])
            products[-1].append(term.kind)
        counted = [[kind for kind in product if kind] for product in products]
        kinds = {kind for product in counted for kind in product}
        if len(products) == 1 and len(self.terms) > 1 and counted[0].count("%") == 1:
            kinds, counted = kinds - {"%"}, [[kind for kind in counted[0] if kind != "%"]]  # a part of something
        if not kinds:
            return ""
        if len(kinds) > 1 or any(len(product) != 1 for product in counted):
            return None
        kind = kinds.pop()
        return None if kind == "%" and any(len(product) > 1 for product in products) else kind

    def without_stray_sign(self) -> Side:
        """Without a currency sign that only the first term has: it may open a formula, `$3 + 4 = 7$`."""
        first, *others = self.terms
        if len(self.terms) == 1 or not first.money or any(t.money for t in others):
            return self
        bare = Term(first.operator, first.written, first.end, first.value, "", "", first.attached)
        return Side((bare, *others))


def side(written: str) -> Side | None:
    """What `SIDE` found; None where it is too long to be schoolbook arithmetic."""
    if len(written) >= 8 * MAX_DIGITS * MAX_TERMS:
        return None
    terms: list[Term] = []
    step = _FIRST.match(written)
    while step is not None:
        digits = max(len(step[part] or "") for part in ("number", "over", "under"))
        if len(terms) == MAX_TERMS or digits > MAX_DIGITS:
            return None
        terms.append(_term(step))
        step = _NEXT.match(written, step.end())
    return Side(tuple(terms))


def _term(step: re.Match[str]) -> Term:
    unit, money = step["unit"] or "", step["money"] or ""
    written = step["written"][: len(step["written"]) - len(unit)]
    negative = sum(c in exact.MINUS for c in written) % 2 == 1
    if step["over"] is None:
        value = exact.number(step["number"])
    else:
        value = None if int(step["under"]) == 0 else Fraction(int(step["over"]), int(step["under"]))
    if value is not None and negative:
        value = -value
    kind = money or " ".join(map(_singular, unit.casefold().split()))
    if money and unit:
        kind = f"{money} {kind}"
    attached = unit != "" and not unit[0].isspace()
    return Term(_operation(step["operator"]), written, step.end("written") - len(unit), value, money, kind, attached)


def _operation(operator: str) -> str:
    symbol = operator.strip() or "+"
    if symbol in _LATEX:
        return _LATEX[symbol]
    if symbol == "of" or symbol in TIMES:
        return "*"
    return "/" if symbol in OVER else "-" if symbol in exact.MINUS else "+"


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
