"""Answers compared in the host: what is surely equal, surely different, and what is left open."""

import time

import pytest

from nabla_agents.rewards.tools.answer import same

EQUAL = [
    ("18", "18"),
    ("18", "18.0"),
    ("0.5", ".5"),
    ("1,000,000", "1000000"),
    ("$1{,}000$", "1000"),
    ("1/2", "0.5"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"),
    ("\\frac12", "0.5"),
    ("1\\frac{1}{2}", "1.5"),
    ("1 1/2", "3/2"),
    ("-1 1/2", "-1.5"),
    ("-\\frac{3}{4}", "\\frac{-3}{4}"),
    ("1.5\\times10^{3}", "1500"),
    ("10^{-3}", "0.001"),
    ("1e3", "1000"),
    ("50\\%", "0.5"),
    ("50\\%", "50"),
    ("0.5", "50%"),
    ("\\$2.50", "2.5"),
    ("5", "€5"),
    ("12 apples", "12"),
    ("12", "12\\text{ cm}"),
    ("12 cm", "12 cm."),
    ("90^\\circ", "90"),
    ("x=3", "3"),
    ("x = 3", "x=3"),
    ("−3", "-3"),
    ("A", "(A)"),
    ("\\text{C}", "C."),
    ("\\infty", "$\\infty$"),
    ("(1,2)", "( 1, 2 )"),
    ("\\boxed{7}", "7"),
    ("\\left(1,2\\right)", "(1,2)"),
    ("$5", "5 dollars"),
    ("\\$18", "18 dollars per day"),
    ("$5", "5"),
    ("5", "5 cents"),
    ("¥5", "5 yen"),
    ("5%", "5 percent"),
    ("7", "seven"),
    ("7.0", "Seven"),
    ("21", "twenty-one"),
    ("21", "twenty one"),
]
DIFFERENT = [
    ("18", "81"),
    ("5", "5.0000001"),
    ("1/2", "2/3"),
    ("10^{-3}", "0.01"),
    ("1000", "10,000"),
    ("12 apples", "21"),
    ("12 apples", "13 apples"),
    ("50%", "5"),
    ("-3", "3"),
    ("x=3", "4"),
    ("A", "B"),
    ("\\text{A}", "(d)"),
    ("0.5", "1"),
    ("$5", "6"),
    ("$5", "$6"),
    ("7", "eight"),
    ("12", "6 apples"),
]
OPEN = [
    ("1/3", "0.33"),  # equal when rounded
    ("3.14", "3.142"),
    ("5 km", "5000 m"),
    ("y = 3", "x = 3"),
    ("x", "y"),  # no choice letters
    ("x^2", "x^3"),
    ("$5", "5 cents"),
    ("$5", "500 cents"),
    ("$5", "5 apples"),
    ("$5", "€5"),
    ("€5", "5 dollars"),
    ("$5", "5%"),
    ("$5 per hour", "5 dollars per day"),
    ("£5", "5 pounds"),
    ("5", "500 cents"),  # of dollars, perhaps
    ("2", "120 minutes"),
    ("120", "2 hours"),
    ("7", "seven apples"),
    ("1/2", "one half"),
    ("2000000", "2 million"),
    ("36", "3 dozen"),
    ("100", "one hundred"),
    ("42", "42 is wrong"),
    ("7", "7 or 8"),
    ("25", "25 and 26"),
    ("100", "1,00"),
    ("3/0", "3"),
    ("nan", "NaN"),
    ("1000", "1_000"),
    ("12", "\u0661\u0662"),  # other digits
    ("12", "\uff11\uff12"),
    ("1e10000000", "5"),  # `Fraction` takes seconds for it
    ("5", "1e50000000"),
    ("2", "1" * 50),
    ("5", ""),
    ("", ""),
    ("7", "\ud800"),
    ("7", "7" + " " * 2000),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold: str, answer: str) -> None:
    assert same(gold, answer) is True
    assert same(answer, gold) is True


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold: str, answer: str) -> None:
    assert same(gold, answer) is False


@pytest.mark.parametrize(("gold", "answer"), OPEN)
def test_not_sure(gold: str, answer: str) -> None:
    assert same(gold, answer) is None


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1 ", "\\frac{", "{", "\\text{", "9e9", "x=", "10^", "\\boxed{", "a ", "$", "-"]
)
def test_hostile_answers_cost_milliseconds(piece: str) -> None:
    started = time.process_time()
    for count in (2000 // len(piece), 100_000 // len(piece)):
        same("7", piece * count)
    assert time.process_time() - started < 2
