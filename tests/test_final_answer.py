"""The answer that votes: what is found in a text, in which normal form, and in what time."""

import time

import pytest

from nabla_agents.final_answer import extract_answer, stated_answer

TABLE = [
    # marked answers; the last one of a kind counts
    ("Answer: 42", "42"),
    ("answer: 42", "42"),
    ("ANSWER = 42", "42"),
    ("The answer is 42.", "42"),
    ("The answer is: 42.", "42"),
    ("The final answer is **42**.", "42"),
    ("**Answer:** 42", "42"),
    ("**Answer: 42**", "42"),
    ("__Answer__: 42", "42"),
    ("Answer: 7\nNo, wait.\nAnswer: 8", "8"),
    ("12 + 30 = 42\nAnswer: 42\n100 more words", "42"),
    ("#### 42", "42"),
    ("####42\n", "42"),
    (r"so \boxed{42} it is, 7", "42"),
    (r"\boxed{1} or rather \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("Answer: Paris", "paris"),
    ("Answer: Paris.", "paris"),
    ("Answer:  New   York ", "new york"),
    ("Answer: STRASSE", "strasse"),
    ("Answer: straße", "strasse"),
    ("Answer: 北京", "北京"),
    ("Answer: 1/2", "1/2"),
    ("Answer: x = 3", "x = 3"),
    # normal form of numbers
    ("Answer: 1,234,567", "1234567"),
    ("Answer: $1,000.50", "1000.5"),
    ("Answer: $5$", "5"),
    ("Answer: `5`", "5"),
    ("Answer: 5.", "5"),
    ("Answer: 5.0", "5"),
    ("Answer: 5.10", "5.1"),
    ("Answer: 500", "500"),
    ("Answer: 0.50", "0.5"),
    ("Answer: .5", "0.5"),
    ("Answer: 007", "7"),
    ("Answer: 000", "0"),
    ("Answer: -5", "-5"),
    ("Answer: −5", "-5"),
    ("Answer: -0", "0"),
    ("Answer: -0.0", "0"),
    ("Answer: ١٢", "12"),
    ("Answer: １２", "12"),
    (f"Answer: {'9' * 5000}", "9" * 5000),
    # without a mark: the last number
    ("first 3, then 4 apples", "4"),
    ("it costs 1,200 dollars", "1200"),
    ("half is .5", "0.5"),
    ("7 - 9 gives -2", "-2"),
    ("so it is 10-5", "5"),
    ("f(x)-5", "5"),
    ("He answered 3 questions; the total is 12", "12"),
    ("Two answers: 3 and 4", "4"),
    ("The answer can be found by adding 3 and 4", "4"),
    ("Answer:\n42", "42"),
    (r"\boxed{} 7", "7"),
    ("Answer: ** 7", "7"),
    # no answer
    ("", None),
    ("I do not know", None),
    ("Answer:", None),
    ("The answer is", None),
    (r"\boxed{}", None),
    ("####   ", None),
    ("²", None),
]


@pytest.mark.parametrize(("text", "answer"), TABLE)
def test_the_answer_of_a_text_in_normal_form(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("written", ["3", "3.0", "03", "3.000", "3.", "3,", "３", "$3$", "**3**"])
def test_equal_numbers_vote_together(written: str) -> None:
    assert extract_answer(f"Answer: {written}") == "3"


HOSTILE = {
    "spaces after a mark": "answer" + " " * 100_000,
    "spaces after is": "answer is" + " " * 100_000,
    "spaces after hashes": "####" + " " * 100_000,
    "emphasis": "answer" + "*_" * 50_000,
    "marks": "answer: " * 12_500,
    "marks in lines": "answer:\n" * 12_500,
    "words": "answer is " * 10_000,
    "open boxes": r"\boxed{" * 14_000,
    "open boxes with pairs": r"\boxed{{}" * 11_000,
    "an open box with pairs": r"\boxed{" + "{}" * 50_000,
    "an open box": r"\boxed{" + "x" * 100_000,
    "digits": "1" * 100_000,
    "commas": "1," * 50_000,
    "dots": "1." * 50_000,
    "signs": "-" * 100_000,
    "hashes": "#" * 100_000 + "\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_of_100_kb_is_read_in_time(name: str) -> None:
    """A linear search takes milliseconds; a backtracking one minutes."""
    started = time.process_time()
    extract_answer(HOSTILE[name])
    assert time.process_time() - started < 2


# ── the answer as it is stated ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{\sqrt{3}}{2}}.", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{1} and \boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a \boxed{b} c}}", r"\text{a \boxed{b} c}"),
        ("The answer is $x^2$ for all x.", "$x^2$"),
        (r"The answer is $\$2.50$.", r"$\$2.50$"),
        ("The answer is 7. It was 8.", "7"),
        ("**Answer:** 3.5", "3.5"),
        ("#### 1,200", "1,200"),
        ("x^2 + 1", "x^2 + 1"),
        ("She has 3 apples, then 4", "4"),
        ("Is it 3 or 4", None),
        ("It isn't 7.", None),
        ("It is certainly not 7", None),
        ("No, not this. It is 7", "7"),
        ("The answer is 3 or 4", None),
        ("nothing to say", None),
        ("", None),
    ],
)
def test_the_stated_answer_is_given_as_written(text: str, answer: str | None) -> None:
    assert stated_answer(text) == answer


def test_a_box_may_hold_braces_of_any_depth() -> None:
    assert extract_answer(r"\boxed{\frac{\sqrt{3}}{2}} of 5") == r"\frac{\sqrt{3}}{2}"
    deep = "{" * 5000 + "7" + "}" * 5000
    assert extract_answer(rf"\boxed{{{deep}}}") == deep


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{}", "{", "}", "\\", "$", "answer is ", "3 or ", "1 "])
def test_hostile_text_is_searched_in_time(piece: str) -> None:
    started = time.process_time()
    stated_answer(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 5


def test_boxes_in_boxes_are_read_in_time() -> None:
    count = 100_000
    started = time.process_time()
    stated_answer(r"\boxed{" * count + "}" * count)
    assert time.process_time() - started < 2
