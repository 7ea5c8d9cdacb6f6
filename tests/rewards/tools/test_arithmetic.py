"""The calculator: what it finds, what it says about it, and that hostile text neither fools nor delays it."""

import builtins
import itertools
import math
import time
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from nabla_agents import ArithmeticSteps, ConfigurationError, Rollout

RIGHT = [
    "3 + 4 = 7",
    "3+4=7",
    "10 - 3 = 7.",
    "2 * 3 * 4 = 24",
    "7 / 2 = 3.5",
    "8 / 2 / 2 = 2",
    "2 + 3 * 4 = 14",
    "2 - 3 * 4 = -10",
    "20 - 6 / 3 + 1 = 19",
    "-3 + 5 = 2",
    "5 - -3 = 8",
    "5 * -3 = -15",
    "-8 / -2 = 4",
    "3 − 5 = −2",
    "10 – 3 = 7",
    "3 × 4 = 12",
    "3 · 4 = 12",
    "3 ⋅ 4 = 12",
    "12 ÷ 4 = 3",
    "12 ∕ 4 = 3",
    "3 x 4 = 12",
    "3x4=12",
    "10 X 4 = 40",
    "1,200 + 300 = 1,500",
    "1,234,567 + 1 = 1234568",
    "0.1 + 0.2 = 0.3",
    "2.50 + 2.5 = 5",
    "0.1 + 0.2 = 0.30",
    "10 / 3 = 3.33",
    "2 / 3 = 0.67",
    "-2 / 3 = -0.67",
    "1 / 8 = 0.13",
    "1/2 + 1/4 = 3/4",
    "3 + 4 = 2 + 5",
    "3 + 4 =\n7",
    "(3 + 4 = 7)",
    "x=3 + 4 = 7",
    "- 5 + 2 = 7",
    "* 5 + 2 = 7",
    "1) 5 + 2 = 7",
    "2. 5 + 2 = 7",
    "(a) 5 + 2 = 7",
    "3 + 4 = 7!",
    "3 + 4 = 7, and so on",
    "It is -3 + 5 = 2",
    "3\u00a0+\u00a04 = 7",
    "٣ + ٤ = ٧",
    "$3 + $4 = $7",
    "$3 + $4 = 7",
    "9 * $2 = $18",
    "$20 / 4 = $5",
    "$1,200 - $300 = $900",
    "-$3 + $5 = $2",
    "$3 - $5 = -$2",
    "3 * 4 = $12",
    "€3.50 + €1.50 = €5",
    "3 km + 4 km = 7 km",
    "3 apples + 4 apples = 7 apples",
    "3 red apples + 1 red apple = 4 red apples in total",
    "2 hours * 3 = 6 hours",
    "10 km / 2 = 5 km",
    "3km + 4km = 7km",
    "5 km/h + 3 km/h = 8 km/h",
    "2 million + 3 million = 5 million",
    "20% of 50 = 10",
    "20% * 50 = 10",
    "50 * 20% = 10",
    "10% + 5% = 15%",
    "100% - 30% = 70%",
    "15% of $80 = $12",
    ".5 + .5 = 1",
    "20*.5 = 10",
    "$3 + 4 = 7$",
    "$3 + 4 = 7$.",
    "\\(3 \\times 4 = 12\\)",
    "3 \\cdot 4 = 12",
    "12 \\div 4 = 3",
    "\\frac{1}{2} + \\frac{1}{4} = \\frac{3}{4}",
    "\\frac{1}{2} + 0.25 = 0.75",
    "3 * 4 &= 12 \\\\",
    "**3 + 4 = 7**",
    "so **3 + 4 = 7**",
    "3 + 4 = **7**",
    "3 + 4 = 10 - 3 = 7",
    "10 + 2 = 15 - 3 = 12",
    "16 - 3 - 4 = <<16-3-4=9>>9 duck eggs",
    "9 * 2 = $<<9*2=18>>18 every day",
    "<<48/2=24>>",
    "3 + 4 = 7 apples",
    "3 + 4 = 7 - which is odd",
    "(1 + 2) * 3 + 4 = 13",
    "2 * (3 + 4) = 14",
    "3^2 + 4 + 1 = 14",
    "2 * 4 = 2^3",
    "2^{3} -4 + 5 = 9",
    "2.5 * 10 * 10 = 2.5 * 10^2",
    "2 ^ 3 + 4 = 12",
    "2/3 = 0.67",
    "3(4+5) = 27",
    "(2)(3) = 6",
    "[3 + (4 - 2)] * 2 = 10",
    "((4 * 6) * 3 + -2) = (24 * 3 + -2) = 70",
    "(3+4)*5 = 7*5 = 35",
    "B = (-8 - 4) = (-12) = -12",
    "2 - (-3) = 5",
    "-(3 + 4) * 2 = -14",
    "(-2)^2 + 1 = 5",
    "2**3 + 4 = 12",
    "3² + 4² = 25",
    "10^-3 * 5 = 0.005",
    "1.5 × 10^3 = 1500",
    "\\dfrac{3 + 4}{2} = 3.5",
    "\\frac{\\frac{1}{2}}{4} = \\frac{1}{8}",
    "\\frac12 + \\frac12 = 1",
    "2 \\times \\left( 3 + 4 \\right) = 14",
    "3 x (4 + 5) = 27",
    "(3 km + 4 km) * 2 = 14 km",
    "$(3 + 4) \\cdot 5 = 35$",
    "$40 * (1 + 0.5) = $60",
    "(20% of 50) + 2 = 12",
    "2) (5 + 2) * 2 = 14",
    "(2) (5 + 2) * 2 = 14",
    "\\boxed{3(4 + 5) = 27}",
    "\\[ (1 + 2)^3 = 27 \\]",
    "4.2 + 9.45 + 1.35 = 14.999999999999998",
    "$4.20 + $9.45 + $1.35 = $<<4.20+9.45+1.35=14.999999999999998>>14.99",
    "0.5-0.4 = 0.09999999999999998",
    "2000 / 75 = 26.666666666666668",
    "18 * 3.33 = 60",
    "0.67 * 30 = 20",
    "10 / 3 = 3.33 = 3",
    "10/3 * 6 = 3.33 * 6 = 20",
    "(((-7 * -4) * (-4 * -3)) = ((28) * (12)) = 336",  # a bracket too many
    "A = 3 * 4 = 12. B = 5. Then A - B = 12 - 5 = 7",
    "A = (1 - 9) = (-8) and B = 2 + 2 = 4, so (A * B) - (B + A) = (-8 * 4) - (4 + -8) = -28",
]
WRONG = [  # text, the wrong result, the right one
    ("3 + 4 = 8", "8", "7"),
    ("2 + 3 * 4 = 20", "20", "14"),
    ("2 - 3 * 4 = -4", "-4", "-10"),
    ("8 / 2 / 2 = 8", "8", "2"),
    ("10 - 3 - 2 = 9", "9", "5"),
    ("5 - -3 = 2", "2", "8"),
    ("3 - 5 = 2", "2", "-2"),
    ("3 − 5 = −3", "−3", "-2"),
    ("7 / 2 = 3", "3", "3.5"),
    ("7 / 2 = 4", "4", "3.5"),
    ("3 x 4 = 13", "13", "12"),
    ("3 x 4 + 1 = 5", "5", "13"),
    ("1,200 + 300 = 1,600", "1,600", "1,500"),
    ("1200 + 300 = 1,600", "1,600", "1,500"),
    ("1,200 + 300 = 1600", "1600", "1500"),
    ("0.1 + 0.2 = 0.4", "0.4", "0.3"),
    ("10 / 3 = 3.34", "3.34", "3.33"),
    ("10 / 3 = 3", "3", None),  # no short decimal, and none was written
    ("1 / 8 = 0.12", "0.12", "0.125"),
    ("5 / 0 = 0", "0", None),
    ("4 + 5 / 0 = 4", "4", None),
    ("99999999999999999 + 0.5 = 3", "3", "99999999999999999.5"),  # beyond double precision
    ("123456789012345678901234567890 + 1 = 3", "3", "123456789012345678901234567891"),
    ("1/2 + 1/4 = 2/4", "2/4", "3/4"),  # another numerator alone does not make it right
    ("3 * 4 = 13 + 5 = 17", "13 + 5", None),  # what the model meant by it is not known
    ("$3 + $4 = $8", "$8", "$7"),
    ("9 * $2 = $19", "$19", "$18"),
    ("$3 - $5 = $2", "$2", "-$2"),
    ("$1,200 + $300 = $1,600", "$1,600", "$1,500"),
    ("$3 + 4 = 8$", "8", "7"),
    ("3 km + 4 km = 8 km", "8", "7"),
    ("3km + 4km = 8km", "8", "7"),
    ("2 million + 3 million = 6 million", "6", "5"),
    ("3 + 4 = 8 apples", "8", "7"),
    ("3 + 4 = 8 and then", "8", "7"),
    ("20% of 50 = 20", "20", "10"),
    ("10% + 5% = 20%", "20", "15"),
    ("15% of $80 = $15", "$15", "$12"),
    ("3 \\times 4 = 13", "13", "12"),
    ("\\frac{1}{2} + \\frac{1}{4} = \\frac{2}{4}", "\\frac{2}{4}", "\\frac{3}{4}"),
    ("**3 + 4 = 8**", "8", "7"),
    ("3 + 4 = **8**", "8", "7"),
    ("3 + 4 = 2 + 6", "2 + 6", None),
    ("3 + 4 = (8)", "8", "7"),
    ("(3+4)*5 = 7*6", "7*6", None),
    ("3(4+5) = 17", "17", "27"),
    ("(2)(3) = 5", "5", "6"),
    ("2 - (-3) = -1", "-1", "5"),
    ("2 - (-3) = (-1)", "-1", "5"),
    ("(1 + 2)^3 = 9", "9", "27"),
    ("\\frac{3 + 4}{2} = 3", "3", "3.5"),
    ("\\frac{3 + 4}{2} = \\frac{6}{2}", "\\frac{6}{2}", "\\frac{7}{2}"),
    ("2 \\cdot \\left(3 + 4\\right) = 10", "10", "14"),
    ("(4 * 6 * 3 + -2) = (72 + 2)", "(72 + 2)", None),
    ("3 * 1.99 = 6", "6", "5.97"),
    ("2.5 * 4.2 = 11", "11", "10.5"),
    ("4.2 + 9.45 + 1.35 = 14.99", "14.99", "15"),
    ("620 / 9 = 70", "70", None),
    ("A = 12, B = 8, and then (A - B) = 5", "5", "4"),
    (".5 + .5 = 2", "2", "1"),
]
NOT_JUDGED = [
    "",
    "there is nothing to calculate",
    "12",
    "7 = 7",
    "x = 7",
    "3 + 4",
    "3 + 4 =",
    "3 + 4 ≠ 8",
    "3 + 4 == 8",
    "3 + x = 8",
    "x -3 + 5 = 12",
    "2x + 3 = 7",
    "n x 4 + 1 = 13",
    "√9 + 1 = 4",
    "50% * 3 + 1 = 2.5",
    "1 1/2 + 1/2 = 2",
    "1 / 2 = 50%",
    "7 / 2 = 3 1/2",
    "7 / 2 = 3 R 1",
    "7 / 2 = 3 remainder 1",
    "3 + 4 = 8km",
    "3 + 4 = 8.1.2",
    "3 + 4 = 1,23",
    "0x10 + 1 = 18",
    "a1 + 2 = 4",
    "1.2.3 + 4 = 9",
    f"{'9' * 31} + 1 = 3",
    "+".join("1" * 41) + " = 3",
    "$3 + €4 = €7",
    "$3 + €4 = €8",
    "3 km + 4 m = 8 km",
    "3 km + 400 m = 3.4 km",
    "1 hour + 30 = 90",
    "1 hour + 30 minutes = 90 minutes",
    "60 + 60 = 2 hours",
    "50 * 4 = $2",
    "50 cents * 4 = $2",
    "6 * 2 = 1 dozen",
    "500 + 500 = 1 thousand",
    "2 dozen * 3 eggs = 72 eggs",
    "3 apples + 3 apples = 30",
    "2x + 3x = 10",
    "2 pi + 3 pi = 15.7",
    "2 apples + 3 apples = $10",
    "half of 10 + 2 = 7",
    "20% of 10 + 2 = 4",
    "17 mod 5 + 1 = 3",
    "11 + 2 = 1 (mod 12)",
    "In base 8, 7 + 1 = 10",
    "In binary, 1 + 1 = 10",
    "11 + 2 = 1 pm",
    "11:00 + 2 = 1",
    "7 + 5 = 2 * n",
    "7 + 5 = 2 n",
    "12 + 4 = 4x",
    "3 * 2 * 4 = 4!",
    "1.000 + 500 = 1.500",
    "1000 + 500 = 1 500",
    "2 / 3 = 0.66...",
    "2 / 3 = 0.66…",
    "7 / 2 = 3 boxes",
    "7 / 2 = 3 remainder 1",
    "5 more than 3 + 4 = 12",
    "log 100 + 1 = 3",
    "5 & 3 + 1 = 1",
    "1 << 2 + 1 = 8",
    "\\cos 3 + 4 = 5",
    "3 + 4 =",
    "3 + 4 =",
    "1. First",
    "12 / 4 = 2\\sqrt{2}",
    "2010 - 2015 = 5 years",
    "3 + 4 = 8\\%",
    "3{,}000 + 1 = 4",
    "100 + 10% = 110",
    "$2 * $3 = $6",
    "3 m * 4 m = 12 m",
    "2 feet + 3 feet = 1.67 yards",
    "5 choose 2 + 1 = 11",
    "n *3 + 4 = 10",
    "n **3 + 4 = 10",
    "x) **3 + 4 = 10",
    "1/3 of 12 = 4",
    "f(3 + 4) = 9",
    "x (3 + 4) = 9",
    "sqrt(3 + 6) = 3",
    "\\sqrt{3 + 6} = 3",
    "\\sin(3 + 4) = 2",
    "max(3, 4 + 2) = 9",
    "x^{2} + 3 = 7",
    "2x(3 + 4) = 9",
    "6 / 2(1 + 2) = 9",
    "6 / 2(1 + 2) = 1",
    "-2^2 + 8 = 12",
    "25 / 1/3 = 75",
    "2 * (3 + 4 = 9",
    "9^9^9 = 1",
    "9**9**9 = 1",
    "9^(9^9) = 1",
    "9^999 = 1",
    "((9^64)^64)^64 = 1",
    "2\\frac{1}{2} + 1 = 3.5",
    "2 and 1/2 = 5",
    "12 x 1 and 1/4 = 15",
    "Day 2 = 5 + 6",
    "0900-0130 = 0730",
    "(3 km + 4) * 2 = 14",
    "279/99999 = 0.\\overline{00279}",
    "18 / 100% = 0.18",
    "A = 12 and B = 5. A = 7. A - B = 3",
    "A - B = 3, where A = 12 and B = 8",
    "A = 12, so A - B = 3",
    "A = 12 x, B = 8, A - B = 3",
    "A = 12 km, B = 8, A - B = 3",
    "A = 12, B = 8, 2 * A - B = 3",
    "A = 12, B = 8, n - A - B = 3",
    "Plan A = 12 dollars. A = $12. B = 8. A - B = 3",
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_equation_is_verified(text: str) -> None:
    score = ArithmeticSteps().judge(text)
    assert (score.value, score.verdict, score.verified) == (1.0, 1.0, True), score.explanation
    assert [span.value for span in score.spans] == [1.0] * len(score.spans) != []


@pytest.mark.parametrize(("text", "written", "expected"), WRONG)
def test_a_wrong_result_is_located_with_the_right_text(text: str, written: str, expected: str | None) -> None:
    score = ArithmeticSteps(credit=3.0).judge(text)
    assert (score.value, score.verdict, score.verified) == (0.0, 0.0, False)
    span = score.spans[0]
    assert text[span.start : span.end] == written
    assert (span.value, span.expected, span.credit) == (-1.0, expected, 3.0)
    assert written in score.explanation
    assert (expected or "") in score.explanation


@pytest.mark.parametrize("text", NOT_JUDGED)
def test_what_is_no_whole_equation_is_not_judged(text: str) -> None:
    """NaN, never a verdict: part of a longer expression, a unit, another notation, nothing at all."""
    score = ArithmeticSteps().judge(text)
    assert math.isnan(score.value), score.explanation
    assert (score.verdict, score.verified, score.spans) == (None, None, ())
    assert score.explanation


def test_what_a_wrong_equation_comes_to_is_said() -> None:
    for text, explanation in [
        ("620 / 9 = 70", "620 / 9 ≈ 68.9, not 70"),
        ("20 / 3 = 7", "20 / 3 ≈ 6.67, not 7"),
        ("2 / 300 = 1", "2 / 300 ≈ 0.00667, not 1"),
        ("10 / 3 = 3.34", "10 / 3 ≈ 3.33, not 3.34"),
        ("5 / 0 = 0", "5 / 0 is undefined, not 0"),
        ("(3 + 4) * 5 = 7 * 6 = 42", "(3 + 4) * 5 = 35, not 7 * 6 = 42"),
        ("$2 + $3 = $<<2+3=5>>6", "$2 + $3 = $5, not $6"),
    ]:
        assert ArithmeticSteps().judge(text).explanation == explanation


def test_each_neighbouring_pair_of_a_chain_is_compared() -> None:
    score = ArithmeticSteps().judge("A = (4 * 6 * 3 + -2) = ((24) * 3 + -2) = (72 - 4) = (68) = 70")
    assert [span.value for span in score.spans] == [1, -1, 1, -1]
    assert "(72 - 4) = 68, not" not in score.explanation
    assert "68 = 68, not 70" in score.explanation.replace("(68)", "68")


def test_what_letters_stand_for_is_compared() -> None:
    score = ArithmeticSteps().judge("A = (1 - 13) = -12. B = -8. So A - B = -12 - 8 = -20")
    assert [span.value for span in score.spans] == [1, -1, 1]
    assert score.explanation == "A - B = -4, not -12 - 8 = -20"


def test_the_value_falls_with_each_wrong_equation() -> None:
    """All right and wrong patterns of six equations: in [0, 1], the ends only for all and none, and always smaller
    with one more wrong equation, wherever it stands.
    """

    def value(pattern: tuple[bool, ...]) -> float:
        return ArithmeticSteps().judge("\n".join(f"{i} + 1 = {i + 1 + (not r)}" for i, r in enumerate(pattern))).value

    values = {pattern: value(pattern) for pattern in itertools.product([True, False], repeat=6)}
    for pattern, of_pattern in values.items():
        assert (of_pattern == 1) is all(pattern)
        assert (of_pattern == 0) is not any(pattern)
        for i in range(6):
            if pattern[i]:
                assert values[(*pattern[:i], False, *pattern[i + 1 :])] < of_pattern
        if any(pattern):
            assert value((*pattern, False)) < of_pattern
    assert value((False,)) == 0


def test_the_value_is_made_of_the_shares_before_the_first_wrong_one_and_in_all() -> None:
    lines = ["1 + 1 = 2", "2 * 3 = 6", "6 - 1 = 4", "4 * 5 = 20", "20 / 4 = 6"]
    score = ArithmeticSteps().judge("\n".join(lines))
    assert score.value == score.verdict == (2 + 3) / 10
    assert score.verified is False
    assert [span.value for span in score.spans] == [1, 1, -1, 1, -1]
    assert "6 - 1 = 5" in score.explanation
    assert "20 / 4 = 5" in score.explanation


def test_equations_of_one_line_are_all_found() -> None:
    """Also where one result begins the next equation, or a list marker looks like an operator."""
    for text in ("3 * 4 = 12 + 5 = 17", "1+1=2 2+2=4", "3 + 4 = 7\n- 5 + 2 = 7", "1 + 1 = 2; 2 + 2 = 4"):
        score = ArithmeticSteps().judge(text)
        assert (len(score.spans), score.verified) == (2, True), text


def test_a_result_on_the_line_above_is_no_operand() -> None:
    """Joined over the line break, `7 - 5 + 2` would be 4."""
    score = ArithmeticSteps().judge("- 3 + 4 = 7\n- 5 + 2 = 8")
    assert [span.expected for span in score.spans] == [None, "7"]


def test_a_calculators_note_and_its_copy_are_both_judged() -> None:
    for text, right in [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs", [1, 1]),
        ("16 - 3 - 4 = <<16-3-4=9>>8 eggs", [1, -1]),
        ("16 - 3 - 4 = <<16-3-4=8>>9 eggs", [-1, 1]),
        ("9 * 2 = $<<9*2=18>>18 and 1 + 1 = <<1+1=3>>3", [1, 1, -1, -1]),
    ]:
        spans = ArithmeticSteps().judge(text).spans
        assert [span.value for span in spans] == right, text
        assert [span.start for span in spans] == sorted(span.start for span in spans)


def test_units_and_currencies_change_no_verdict() -> None:
    """200 random sums, bare and with a unit or currency on every term: the same verdict, the same expected number."""
    random, tool = Random(3), ArithmeticSteps()
    for _ in range(200):
        a, b, off = random.randint(1, 500), random.randint(1, 500), random.choice([0, 0, 5, -3, 11])
        bare = tool.judge(f"{a} + {b} = {a + b + off}").spans[0]
        for form in ("${}", "{} km", "{} small boxes", "{}%", "€ {}"):
            text = f"{form} + {form} = {form}".format(a, b, a + b + off)
            [span] = tool.judge(text).spans
            assert span.value == bare.value, text
            assert (span.expected or "").strip("$€ ") == (bare.expected or ""), text


@pytest.mark.untyped
def test_bytes_are_not_judged() -> None:
    [score] = ArithmeticSteps().score([Rollout.from_text("?", b"1 + 1 = 2")])  # type: ignore[arg-type]
    assert not score.judged


def test_the_right_result_can_be_withheld() -> None:
    [span] = ArithmeticSteps(suggest=False).judge("3 + 4 = 8").spans
    assert (span.value, span.expected) == (-1.0, None)


def test_each_rollout_is_judged_by_its_own_text_and_counted() -> None:
    rollouts = [Rollout.from_text("?", text) for text in ("1 + 1 = 2", "1 + 1 = 3", "no")]
    scores = ArithmeticSteps().score(rollouts)
    assert [s.verified for s in scores] == [True, False, None]
    assert [s.usage.reward_calls for s in scores] == [1, 1, 1]
    assert all(s.usage.flops == 0 for s in scores)


@pytest.mark.parametrize("credit", [-1.0, math.nan])
def test_credit_is_a_number_of_nats(credit: float) -> None:
    with pytest.raises(ConfigurationError, match="credit"):
        ArithmeticSteps(credit=credit)


def random_expression(random: Random) -> tuple[str, Fraction]:
    """An expression as it is written, and its value by Python's own operators and precedence."""
    written, code = "", ""
    space = random.choice(["", " "])
    for term in range(random.randint(2, 6)):
        if term:
            operator = random.choice("+-*/")
            written += space + random.choice({"-": "-−–", "*": "*×·", "/": "/÷", "+": "+"}[operator]) + space
            code += operator
        number = str(random.randint(1, 999) if random.random() < 0.7 else random.randint(1, 99999) / 100)
        sign = "-" if random.random() < 0.15 else ""
        written += sign + number
        code += f"Fraction('{sign}{number}')"
    return written, eval(code)


def decimal(value: Fraction) -> str | None:
    """The value in at most four decimals, if it has so few."""
    if (value * 10**4).denominator != 1:
        return None
    digits = f"{abs(value) * 10**4}".rjust(5, "0")
    text = f"{digits[:-4]}.{digits[-4:]}".rstrip("0").rstrip(".")
    return "-" + text if value < 0 else text


def test_verdicts_equal_those_of_exact_fractions() -> None:
    """400 random expressions with right and wrong results; putting in the expected text makes each equation right."""
    random, tool, judged_exact = Random(7), ArithmeticSteps(), 0
    for _ in range(400):
        left, value = random_expression(random)
        exact = decimal(value)
        judged_exact += exact is not None
        off = decimal(value + random.choice([-1, 1, 10, Fraction(1, 2)])) if exact else "0.001"
        assert off is not None
        if exact is not None:
            assert tool.judge(f"so {left} = {exact}, fine").verified is True, (left, exact)
        text = f"so {left} = {off}, fine"
        wrong = tool.judge(text)
        if abs(value - Fraction(off)) < Fraction(1, 2000):
            assert wrong.verified is True, text  # 0.001 was the rounded value
            continue
        assert wrong.verified is False, text
        [span] = wrong.spans
        assert text[span.start : span.end] == off
        if exact is not None:
            assert span.expected == exact
        assert span.expected is not None
        assert tool.judge(text[: span.start] + span.expected + text[span.end :]).verified is True
    assert judged_exact > 100


HOSTILE = {
    "one endless sum": "1+" * 50_000,
    "sums without result": "1 + " * 25_000,
    "an equation without end": "1+1=" * 1_000 + "1+" * 48_000,
    "many equations": "1+1=2 " * 1_000 + "2 " * 47_000,
    "many lines": "1+1=2\n" * 1_000 + "+\n" * 47_000,
    "digits": "1" * 100_000,
    "groups of digits": "1,111" * 20_000,
    "dots": "1." * 50_000,
    "spaces": "1" + " " * 100_000,
    "spaces between numbers": ("1" + " " * 300) * 330,
    "spaces before a result": ("1+1=" + " " * 300) * 330,
    "spaces before a remainder": "1+1=2" + " " * 90_000 + "r",
    "signs": "-" * 100_000,
    "double signs": "1--1" * 25_000,
    "brackets": "(" * 100_000,
    "list markers": "(a" * 50_000,
    "letters that multiply": "1x" * 50_000,
    "units": "1 km + " * 14_000,
    "words": "1 aa bb cc dd " * 7_000,
    "letters": "1 " + "a" * 100_000,
    "currencies": "$ " * 50_000,
    "spaces after a currency": ("$" + " " * 300) * 330,
    "spaces before a unit": ("1" + " " * 300 + "km") * 330,
    "fractions": "\\frac{1}{2}+" * 8_000,
    "notes": "<<1+1=2>>" * 1_500 + "<" * 86_000,
    "open notes": "<<" * 50_000,
    "a long note": "<<" + "1+" * 50_000 + "1=2>>",
    "stars": "1+1=**" * 1_500 + "*" * 90_000,
    "percent": "1%of " * 20_000,
    "closed brackets": "1)" * 50_000,
    "brackets around numbers": "(1" * 50_000,
    "spaced brackets": ("(" + " " * 300) * 330,
    "products of brackets": "(1)" * 33_000,
    "deep brackets": "(" * 40_000 + "1" + ")" * 40_000 + " = 1",
    "deep sums": "(1+" * 20_000 + "1" + ")" * 20_000 + " = 1",
    "powers": "2^2^" * 25_000,
    "towers": "9**9**9 = 1 " * 8_000,
    "large powers": ("(9^64)" * 12 + "=1 ") * 1_200,
    "open fractions": "\\frac{" * 16_000,
    "nested fractions": "\\frac{1}{" * 10_000,
    "chains": "(1+1)=" * 1_000 + "(" * 94_000,
    "signs and brackets": "-(" * 50_000,
    "plus letters": "A+" * 50_000,
    "sums of letters": "A=1 B=2 " + "A-B=1 " * 1_000 + "A" * 80_000,
    "letters in brackets": "A=1 B=2 " + "(" * 50_000 + "A-(" * 16_000,
    "letters that are set": "A=1 " * 2_000 + "A= " * 30_000,
    "a chain for every letter": "A=" + "1=" * 50_000,
    "huge factors": (("9" * 30 + "*") * 39 + "1=1 ") * 80,
    "huge divisors": (("9" * 30 + "/") * 39 + "1=1;") * 80,
    "huge and fractional": (("9" * 30 + "*") * 38 + "0.5=1;") * 80,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_of_100_kb_is_judged_in_time(name: str) -> None:
    """Linear time takes at most 2 s on a slow core; the quadratic time of a backtracking search takes minutes."""
    started = time.process_time()
    ArithmeticSteps().judge(HOSTILE[name])
    assert time.process_time() - started < 10


def test_nothing_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("text was run as code")

    for name in ("eval", "exec", "compile", "__import__"):
        monkeypatch.setattr(builtins, name, forbidden)
    score = ArithmeticSteps().judge("__import__('os').abort() + 1 = 2\n9**9**9**9 = 1\n2 + 2 = 5\n1 + 1 = 2")
    monkeypatch.undo()
    assert [span.expected for span in score.spans] == ["4", None]


@pytest.mark.parametrize(
    ("text", "verified"),
    [
        ("2 + 2 = 4\nAnswer: 7", None),
        ("2 + 2 = 4\n#### 7", None),
        ("2 + 2 = 4, so \\boxed{7}", None),
        ("2 + 2 = 4\n3 + 4 = 7\nAnswer: 8", None),
        ("2 + 2 = 5\nAnswer: 7", False),
        ("2 + 2 = 4\nAnswer: 4", True),
        ("2 + 2 = 4\nAnswer: $4", True),
        ("2 + 2 = 4\nThe answer is 4 apples.", True),
        ("2 + 2 = 4\n4 * 3 = 12\nAnswer: 4", True),
        ("1 / 2 = 0.5\nAnswer: 1/2", True),
        # What may be right in other words, other units or rounded is no reason to doubt.
        ("10 / 3 = 3.33\nAnswer: 3.3", True),
        ("60 + 60 = 120 minutes\nAnswer: 2 hours", True),
        ("2 + 2 = 4\nAnswer: four", True),
        ("2 + 2 = 4\nAnswer: on Tuesday", True),
        ("2 + 2 = 4\nAnswer: 3 or 7", True),
        ("2 + 2 = 4, in 7 days", True),  # no answer is marked
    ],
)
def test_it_vouches_for_no_answer_that_its_equations_do_not_give(text: str, verified: bool | None) -> None:
    """The value stays that of the equations: the last step may stand in words."""
    score = ArithmeticSteps().judge(text)
    assert (score.value, score.verified) == (0.0 if verified is False else 1.0, verified)
    assert len(score.spans) == text.count(" = ")
    assert ("none results in the answer" in score.explanation) == (verified is None)


def test_a_text_of_dense_equations_has_a_limit() -> None:
    dense = "3 + 4 = 7; " * 10_000
    started = time.process_time()
    score = ArithmeticSteps().judge(dense)
    assert time.process_time() - started < 1
    assert not score.judged
    assert "110000 characters, limit 100000" in score.explanation
    assert ArithmeticSteps(max_characters=200_000).judge(dense[:11_000]).verified is True


@pytest.mark.parametrize("options", [{"credit": math.inf}, {"credit": math.nan}, {"max_characters": 0}])
def test_limits_and_credit_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="ArithmeticSteps"):
        ArithmeticSteps(**options)


@pytest.mark.parametrize(
    ("text", "told", "without_results"),
    [
        ("3 + 4 = 7", "", ""),
        ("no equation", "", ""),
        (
            "3 + 4 = 8 and 2 * 5 = 11.",
            "Wrong: 3 + 4 = 7, not 8; 2 * 5 = 10, not 11.",
            "Wrong: 3 + 4 is not 8; 2 * 5 is not 11.",
        ),
        ("3 + 4 = 2 + 6", "Wrong: 3 + 4 = 7, not 2 + 6 = 8.", "Wrong: 3 + 4 is not 2 + 6."),
        ("2 + 2 = 4. #### 7", *["1 equations right, but none results in the answer '7'"] * 2),
    ],
)
def test_a_model_is_told_the_wrong_equations_and_their_results_if_it_may(
    text: str, told: str, without_results: str
) -> None:
    assert ArithmeticSteps().judge(text).feedback == told
    assert ArithmeticSteps(suggest=False).judge(text).feedback == without_results


def test_of_a_thousand_wrong_equations_a_model_is_told_the_first() -> None:
    told = ArithmeticSteps().judge(", ".join(["2 + 2 = 5"] * 1000)).feedback
    assert told.startswith("Wrong: 2 + 2 = 4, not 5; ")
    assert len(told) == 500
