"""Whether two answers are the same, decided in the host: by normal form, by choice letter, and by exact number."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from nabla_agents.rewards.tools import exact
from nabla_agents.rewards.tools.exact import CONVERSIONS

MAX_CHARACTERS = 2000
_REMOVED = re.compile(
    r"\\(?:left|right|displaystyle)\b|\\[,!;: ]|\\?\$|~|\^\{?\\circ\}?|°|\\boxed(?=\{)|\*\*(?=\s|$)|\{(?=,\})|(?<=,)\}"
)
_REPLACED = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\s+"), " "),
)
_LETTER = re.compile(r"\(?([A-Ja-j])[).:]*")
ASSIGNED = re.compile(r"([A-Za-z]\w{0,9}) ?= ?(?=[^=])")
# Only what is cheap is a number: `Fraction("1e10000000")` takes seconds, and other scripts have digits, too.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,12}|[0-9]{1,40})(?:\.[0-9]{1,40})?|\.[0-9]{1,40}"
_SENTENCE = (
    r"(?!.*\b(?:is|are|was|not|isn|no|wrong|or|and|but|if|than|to|because|since)\b)"  # `42 is wrong` has no unit
)
_UNIT = rf" ?(?P<unit>%|[€£¥₹¢]|{_SENTENCE}[^\W\d_][^\d=<>]{{0,40}})?"
_FORMS = tuple(
    re.compile(rf"(?P<sign>[+-]?) ?(?P<money>[€£¥₹])? ?{form}{_UNIT}", re.ASCII)
    for form in (
        rf"(?P<number>{_DIGITS})(?: ?(?:\\times|\\cdot|[×*·x]) ?10\^\{{?(?P<power>[+-]?[0-9]{{1,3}})\}}?)?",
        rf"(?P<number>{_DIGITS})[eE](?P<power>[+-]?[0-9]{{1,3}})",
        r"10\^\{?(?P<power>[+-]?[0-9]{1,3})\}?",
        rf"(?:(?P<whole>[0-9]{{1,40}}) )?(?P<number>{_DIGITS}) ?/ ?(?P<under>[0-9]{{1,40}})",
        rf"(?P<whole>[0-9]{{1,40}})? ?\\frac ?\{{(?P<number>-?(?:{_DIGITS}))\}} ?\{{(?P<under>[0-9]{{1,40}})\}}",
        r"(?P<whole>[0-9]{1,40})? ?\\frac(?P<number>[0-9])(?P<under>[0-9])",
    )
)
_BESIDE, _GROUPED = re.compile(r"\d +\d"), re.compile(r"(?<!\d)\d{1,3}(?: \d{3})+(?!\d)")
_ESCAPED_DOLLAR, _DOLLAR = re.compile(r"\\\$"), re.compile(r"(?<!\\)\$")
_CURRENCIES = {"dollar": "$", "dollars": "$", "usd": "$", "euro": "€", "euros": "€", "eur": "€", "yen": "¥"}
_MULTIPLE = re.compile(  # a number in words behind the digits, `2 million`
    r"(?:hundred|thousand|[mbtz]illion|dozen|score|half|halves|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth"
    r"|tenth|hundredth|thousandth|k|bn)s?\b"
)
_MEASURE = re.compile(  # of which some make another one: without a unit on the other side, both may be meant
    r"(?:cents?|penn(?:y|ies)|nickels?|dimes?|[num]?s|secs?|seconds?|min|mins|minutes?|h|hrs?|hours?|days?|weeks?|months?"
    r"|years?|decades?|centur(?:y|ies)|[kcmn]?m|(?:kilo|centi|milli)?met(?:er|re)s?|in|inch|inches|ft|foot|feet|yd|yards?"
    r"|mi|miles?|[km]?g|(?:kilo|milli)?grams?|tons?|tonnes?|oz|ounces?|lbs?|pounds?|[cm]?l|(?:milli)?lit(?:er|re)s?|pints?"
    r"|quarts?|gallons?|cups?|degrees?|radians?)\b"
)
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SPELLED = {word: i for i, word in enumerate(_ONES.split())}
for _i, _tens in enumerate(_TENS.split(), start=2):
    _SPELLED |= {_tens: 10 * _i} | {f"{_tens}-{one}": 10 * _i + i for i, one in enumerate(_ONES.split()[1:10], start=1)}


@dataclass(frozen=True)
class Number:
    value: Fraction
    places: int | None  # decimals it is written with; None for a fraction
    unit: str  # in lower case; of a currency first its sign


def normal(answer: str) -> str:
    """The answer without what only formats it."""
    answer = _REMOVED.sub("", answer)
    for pattern, replacement in _REPLACED:
        answer = pattern.sub(replacement, answer)
    answer = answer.lstrip(" *_`").rstrip(" .*_`")
    if answer.startswith("{") and answer.endswith("}"):
        answer = answer[1:-1].strip()
    return answer


def same(gold: str, answer: str) -> bool | None:
    """True or False where that is sure, None where it is not: another form, other units, or equal only when rounded.

    With and without a per-cent sign a number is the same (`50%` is `50` and `0.5`), and so it is without its unit or
    currency; but `$5` and `5 cents` are not compared, nor is `500 cents` with 5. Numerals up to `ninety-nine` are read.
    """
    if max(len(gold), len(answer)) > MAX_CHARACTERS:
        return None
    dollars = [_in_dollars(written) for written in (gold, answer)]
    gold, answer = normal(gold), normal(answer)
    if gold == answer or (gold.replace(" ", "") == answer.replace(" ", "") and not _ungrouped(answer, gold)):
        return True if gold else None
    letters = _LETTER.fullmatch(gold), _LETTER.fullmatch(answer)
    if letters[0] and letters[1] and letters[0][1].isupper():
        return letters[0][1] == letters[1][1].upper()
    names = {found[1] for found in (ASSIGNED.match(gold), ASSIGNED.match(answer)) if found}
    one, other = number(gold), number(answer)
    if one is None or other is None or len(names) > 1:
        return None
    one, other = (
        replace(n, unit=f"$ {n.unit}".strip()) if d else n for n, d in zip((one, other), dollars, strict=True)
    )
    return _same_number(one, other)


def _ungrouped(*answers: str) -> bool:
    """Whether spaces in one of them do more than group digits: `4 2` is not 42, while `1 000` is 1000."""
    return any(_BESIDE.search(_GROUPED.sub("1", answer)) for answer in answers)


def numbers(*answers: str) -> bool:
    """Whether all are plainly numbers: then `same` has the last word, where math-verify would drop units and round."""
    return all(len(a) <= MAX_CHARACTERS and number(normal(a)) is not None for a in answers)


def number(answer: str) -> Number | None:
    """A number in normal form with its unit; None for everything that is not plainly one."""
    assigned = ASSIGNED.match(answer)
    answer = answer[assigned.end() :] if assigned else answer
    spelled = _SPELLED.get(answer.casefold().replace(" ", "-"))
    if spelled is not None:
        return Number(Fraction(spelled), None, "")
    for form in _FORMS:
        if (found := form.fullmatch(answer)) is None:
            continue
        parts = {"number": None, "power": None, "under": None, "whole": None, **found.groupdict()}
        value, places = exact.number(parts["number"] or "1"), exact.decimals(parts["number"] or "")
        if parts["under"] is not None:
            if int(parts["under"]) == 0:
                return None
            value, places = value / int(parts["under"]) + int(parts["whole"] or 0), None
        value *= Fraction(10) ** int(parts["power"] or 0)
        unit = (found["unit"] or "").strip(" .").casefold()
        unit = "%" if unit in ("percent", "per cent") else unit
        if _MULTIPLE.match(unit):
            return None
        word, _, rest = unit.partition(" ")
        money = found["money"] or _CURRENCIES.get(word)
        unit = f"{money} {rest if word in _CURRENCIES else unit}".strip() if money else unit
        return Number(-value if found["sign"] == "-" else value, None if parts["power"] else places, unit)
    return None


def _in_dollars(written: str) -> bool:
    """Whether a dollar sign is one: escaped, or without the other one that would make both the marks of a formula."""
    return _ESCAPED_DOLLAR.search(written) is not None or len(_DOLLAR.findall(written)) % 2 == 1


def _same_number(one: Number, other: Number) -> bool | None:
    if not _same_unit(one.unit, other.unit):
        return None
    values = {
        (a.value / (100 if a.unit == "%" and scale else 1), b.value / (100 if b.unit == "%" and scale else 1))
        for a, b in [(one, other)]
        for scale in (True, False)
    }
    if any(a == b for a, b in values):
        return True
    for a, b in ((one, other), (other, one)):
        if b.places and exact.rounded(a.value, b.places) == b.value:
            return None
    measured = [n for n in (one, other) if _MEASURE.match(n.unit)]
    return None if len(measured) == 1 and _converted(one.value, other.value) else False


def _same_unit(one: str, other: str) -> bool:
    """Whether two units may be compared: the same, only one, or the same currency with more words on one side."""
    if not one or not other:
        return True
    if one[0] == other[0] and one[0] in "$€£¥₹" and 1 in (len(one), len(other)):
        return True
    return one.removesuffix("s") == other.removesuffix("s")


def _converted(one: Fraction, other: Fraction) -> bool:
    """Whether two numbers may be the same quantity in two units."""
    return any(a and b / a in CONVERSIONS for a, b in ((one, other), (other, one)))
