"""Letters that a text sets to a number, `A = 3 * 4 = 12`, and sums of them that it goes on with: `A - B = 12 - 5`."""

from __future__ import annotations

import re

from nabla_agents.rewards.tools import exact
from nabla_agents.rewards.tools.expression import Unsure, amount, ending
from nabla_agents.rewards.tools.side import Side
from nabla_agents.rewards.tools.tokens import SIDE, SPACE, tokens

MAX_SIDES = 40  # of a chain
_SET = re.compile(rf"(?<![\w)\]}}+*/^=−–-])(?<![+*/^=−–-]\s)([A-Z]){SPACE}={SPACE}(?=[-−–(\[$\d.\\])")
_OPEN_AFTER = re.compile(rf"{SPACE}(?:[A-Za-z]\b|[\\^!(%*/+])|[.,]\d")
_EQUALS = re.compile(rf"{SPACE}={SPACE}")
_SUM = re.compile(
    rf"(?<![\w)\]}}+*/^=−–-])(?<![+*/^=−–-]\s)"
    rf"((?:[(\[]{SPACE}){{0,8}}[A-Z](?:[ )\]]{{0,8}}[-−–+*/×·][ (\[]{{0,8}}[A-Z]){{1,20}}[ )\]]{{0,8}})"
    rf"={SPACE}(?=[-−–(\[$\d.\\])"
)


def sums_of_letters(text: str) -> dict[int, tuple[int, str, str]]:
    """By where the right side begins: where a sum of letters does, the sum, and the sum with numbers for letters.

    Only letters count that the text has set before, and never to another number.
    """
    sums: dict[int, tuple[int, str, str]] = {}
    values = _numbers(text) if "=" in text else {}
    for match in _SUM.finditer(text) if len(values) > 1 else ():
        known = [values.get(name) for name in re.findall("[A-Z]", match[1])]
        if all(value is not None and value[0] < match.start() for value in known):
            numbers = iter(f"({value[1]})" for value in known if value is not None)
            sum_ = match[1].strip()
            sums[match.end()] = (match.start(), sum_, re.sub("[A-Z]", lambda _, of=numbers: next(of), sum_))
    return sums


def _numbers(text: str) -> dict[str, tuple[int, str]]:
    """By letter: where it is set, and the number it is set to; without those that are set to several, or to what is no
    plain number. A sum without result, `where A = (3 + 4)`, sets nothing.
    """
    numbers: dict[str, tuple[int, str]] = {}
    unclear: set[str] = set()
    for match in _SET.finditer(text):
        side = _last_side(text, match.end())
        if side is None or side.single is None:
            continue
        places = None if side.amount.value is None else exact.short_decimals(side.amount.value)
        counted = not side.amount.kind or side.amount.kind.startswith("and")  # `A = 12 and B = 5`
        if places is None or side.amount.value is None or not counted or _OPEN_AFTER.match(text, side.end):
            unclear.add(match[1])
            continue
        _, number = numbers.setdefault(match[1], (match.start(), exact.text(side.amount.value, places)))
        if number != exact.text(side.amount.value, places):
            unclear.add(match[1])
    return {letter: number for letter, number in numbers.items() if letter not in unclear}


def _last_side(text: str, at: int) -> Side | None:
    """The last side of the chain that begins here; None where that cannot be read."""
    for _ in range(MAX_SIDES):
        side = SIDE.match(text, at)
        if side is None:
            return None
        equals = _EQUALS.match(text, side.end())
        if equals is None:
            try:
                read = ending(tokens(side.group()) or ())
                return Side(side.start(), read, amount(read))
            except Unsure:
                return None
        at = equals.end()
    return None
