r"""Sides of equations in tokens, as people write them: `(3 km + 4 km) * 2`, `20% of 50`, `\frac{1}{2} + 2^3`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from nabla_agents.rewards.tools import exact

MAX_DIGITS, MAX_TERMS, MAX_TOKENS = 30, 40, 240  # beyond, it is no schoolbook arithmetic, and costs time
PLUS, TIMES, OVER = "+", "*×·⋅∙∗✕xX", "/÷∕⁄"
SYMBOLS = exact.MINUS + PLUS + TIMES[:-2] + OVER
SPACE = r"[^\S\n]*+"
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", "of": "*"}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\[dt]?frac(?:\{(?P<over>\d+)\}\{(?P<under>\d+)\}|(?P<over_digit>\d)(?P<under_digit>\d)(?!\d))"
_MONEY = rf"(?:\\?(?P<money>[$€£¥₹]){SPACE})"
# One to three words; a single letter is a variable, or the `x` that multiplies.
_WORDS = rf"(?:{SPACE}[^\W\d_]{{2,20}}(?:/[^\W\d_]{{1,20}})?+){{1,3}}"
_TERM = rf"{_MONEY}?(?P<sign>[{exact.MINUS}])?(?:{_FRACTION}|(?P<number>{_NUMBER}))(?P<unit>%|{_WORDS})?"
# `**` is a power between operands that it touches, or with a space on both sides; else it makes text bold.
_POWER = (
    rf"(?:{SPACE}\^{SPACE}(?:\{{{SPACE}-?\d{{1,4}}{SPACE}\}}|\(-?\d{{1,4}}\)|-?\d{{1,4}}(?![\d.,]*\d))"
    rf"|(?:\*\*|(?<=[\d)]) \*\* )-?\d{{1,4}}(?![\d.]|\*\*)|[⁻]?[⁰¹²³⁴-⁹]{{1,4}})"
)
_OPEN = rf"(?:(?:\\left{SPACE})?[(\[]|\\[dt]?frac\{{){SPACE}"
_CLOSE = rf"{SPACE}(?:(?:\\right{SPACE})?[)\]](?P<counted>{_WORDS})?|\}}(?!{SPACE}\{{))"
_BETWEEN = rf"{SPACE}\}}{SPACE}\{{{SPACE}"  # numerator and denominator
# The letter x multiplies only between two operands; `0x10` is another notation.
_OPERATOR = (
    rf"(?:{SPACE}(?:[{exact.MINUS}{PLUS}{TIMES[:-2]}{OVER}]|(?<!\b0)[xX](?={SPACE}[\d$])|(?<=\s)[xX](?=\s+[(\\])"
    rf"|\\(?:times|cdot|div)\b)|(?<=%){SPACE}of\b){SPACE}"
)


def _unnamed(pattern: str) -> str:
    return re.sub(r"\?P<\w+>", "?:", pattern)


_SIGN = rf"[{exact.MINUS}{PLUS}]"
_ENDS = rf"{_unnamed(_TERM)}(?:{_POWER})?+(?:{_unnamed(_CLOSE)}(?:{_POWER})?+)*+"
_OPENED = rf"(?:{_OPEN}(?:{_SIGN}{SPACE})?){{0,12}}+"
# A side of an equation is read whole and once, and begins with few brackets only, so the time is linear in the text,
# whatever it contains. A bracket multiplies what it touches: `3(4 + 5)`, `(2)(3)`.
SIDE = re.compile(
    rf"(?:(?<![\w.,])(?<!\d:)|(?=\\left|\\[dt]?frac|[(\[]))[{exact.MINUS}]?{_OPENED}{_ENDS}"
    rf"(?:(?:{_OPERATOR}|{_BETWEEN}|(?<=[\d)\]}}])(?=\\left|[(\[])){_SIGN}?{_OPENED}{_ENDS})*+"
)
_CODE = re.compile(r"0\d+(?![\d.])")  # `0900` is a time, or another notation
_TOKEN = re.compile(
    rf"(?P<between>{_BETWEEN})|(?P<power>{_POWER})|(?P<term>{_TERM})|(?P<open>{_OPEN})|(?P<close>{_CLOSE})"
    rf"|(?P<operator>{_OPERATOR})"
)


@dataclass(frozen=True)
class Term:
    """A number. `kind` is what it counts: nothing, a currency sign, `%`, or words in the singular."""

    start: int  # of the number with its currency, from the start of the side
    end: int
    written: str  # currency, sign and number, as in the text
    value: Fraction | None  # None: a fraction over 0
    money: str
    kind: str
    attached: bool  # its unit follows without a space

    @property
    def decimals(self) -> int:
        return exact.decimals(self.written)


@dataclass(frozen=True)
class Token:
    """`symbol`: one of `+ - * /`, `(`, `)`, `{` and `}` around the parts of a fraction, `|` between them, `^`, or `1`
    for a term. `power`: the exponent. `unit`: what is counted behind a bracket. `spaced`: an operator that does not
    touch both its operands.
    """

    symbol: str
    start: int
    end: int
    term: Term | None = None
    power: int = 0
    unit: str = ""
    spaced: bool = False


def tokens(written: str) -> list[Token] | None:
    """Those of what `SIDE` matched; None where it is too long to be schoolbook arithmetic."""
    if len(written) >= 8 * MAX_DIGITS * MAX_TERMS:
        return None
    found: list[Token] = []
    at = terms = 0
    while at < len(written):
        match = _TOKEN.match(written, at)
        if match is None or match.end() == at or len(found) == MAX_TOKENS:
            return None
        token = _token(match, prefix=not found or found[-1].symbol in "+-*/({|")
        if token is None:
            return None
        terms += token.term is not None
        if terms > MAX_TERMS:
            return None
        found.append(token)
        at = token.end
    return found


def _token(match: re.Match[str], *, prefix: bool) -> Token | None:
    text, start, end = match[0], match.start(), match.end()
    if match["term"] is not None:
        if prefix or match["sign"] is None or match["money"]:
            term = _term(match)
            return None if term is None else Token("1", start, end, term)
        return Token("-", start, start + 1)  # `3 -4` subtracts
    if match["power"] is not None:
        digits = text.translate(_SUPERSCRIPTS)
        return Token("^", start, end, power=int(re.sub(r"[^\d-]", "", digits)))
    if match["between"] is not None:
        return Token("|", start, end)
    if match["open"] is not None:
        return Token("{" if "frac" in text else "(", start, end)
    if match["close"] is not None:
        return Token("}" if "}" in text else ")", start, end, unit=singular(match["counted"] or ""))
    return Token(_operation(text), start, end, spaced=text != text.strip())


def _term(match: re.Match[str]) -> Term | None:
    unit, money = match["unit"] or "", match["money"] or ""
    over, under = match["over"] or match["over_digit"], match["under"] or match["under_digit"]
    if max(len(digits or "") for digits in (match["number"], over, under)) > MAX_DIGITS:
        return None
    if _CODE.match(match["number"] or ""):
        return None
    if over is None:
        value = exact.number(match["number"])
    else:
        value = None if int(under) == 0 else Fraction(int(over), int(under))
    if value is not None and match["sign"]:
        value = -value
    start, end = match.start(), match.end() - len(unit)
    written = match.string[start:end]
    kind = f"{money} {singular(unit)}".strip()
    return Term(start, end, written, value, money, kind, unit != "" and not unit[0].isspace())


def singular(words: str) -> str:
    return " ".join(w[:-1] if len(w) > 3 and w.endswith("s") else w for w in words.casefold().split())


def _operation(operator: str) -> str:
    symbol = operator.strip()
    if symbol in _LATEX:
        return _LATEX[symbol]
    if symbol in TIMES:
        return "*"
    return "/" if symbol in OVER else "-" if symbol in exact.MINUS else "+"
