"""A program's printed answer as reward."""

from typing import Any

import pytest

from nabla_agents import ConfigurationError, Executor, Limits, PythonAnswer, Rollout, Score


def judge(tool: PythonAnswer, text: str, question: str = "?") -> Score:
    return tool.score([Rollout.from_text(question, text)])[0]


@pytest.mark.parametrize(
    ("text", "verified"),
    [
        ("print(6 * 7)", True),
        ("```python\nprint('so')\nprint(42.0)\n```", True),
        ("```python\nprint(1)\n```\nbetter\n```python\nprint('The answer is', 42)\n```", True),
        ("if __name__ == '__main__':\n    print(42)", True),
        ("print(41)", False),
        ("print(42)\nprint(41)", False),
        ("print(42)\nraise ValueError", False),
        ("answer = 42", False),
        ("", False),
        ("```text\n42\n```", False),
        ("while True: pass", False),
        ("print('forty-two')", True),
        ("print('forty-two apples')", None),
        ("print('42 or 43')", None),
        ("print('42; 43')", None),
        ("print('4 2')", None),
        ("print('41 = 42')", None),
        ("print('42\\u202e14')", None),
        ("import pandas\nprint(42)", False),
    ],
)
def test_the_last_printed_line_is_the_answer(programs: Executor, text: str, verified: bool | None) -> None:
    score = judge(PythonAnswer(42, limits=Limits(cpu_seconds=1)), text)
    assert score.verified is verified, score.explanation
    assert score.judged is (verified is not None)
    assert score.value == float(bool(verified)) or not score.judged
    assert score.explanation


def test_a_part_of_python_that_the_sandbox_lacks_is_no_proof_of_a_wrong_answer(programs: Executor) -> None:
    score = judge(PythonAnswer(42), "import asyncio\nprint(42)")
    assert (score.value, score.verified) == (0.0, None)
    assert "No module named 'asyncio'" in score.explanation


def test_the_failing_line_is_located(programs: Executor) -> None:
    text = "so:\n```python\nx = 0\nprint(1 / x)\n```"
    [span] = judge(PythonAnswer(42, credit=2.0), text).spans
    assert (text[span.start : span.end], span.value, span.credit) == ("print(1 / x)", -1.0, 2.0)


def test_answers_per_prompt(programs: Executor) -> None:
    tool = PythonAnswer(answers={"a": 1, "b": "1/2"})
    assert [judge(tool, "print(0.5)", q).verified for q in ("a", "b", "c")] == [False, True, None]


@pytest.mark.untyped
@pytest.mark.parametrize("options", [{}, {"answer": ""}, {"answers": {}}, {"answer": 1, "credit": -1.0}])
def test_what_is_no_answer_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="PythonAnswer"):
        PythonAnswer(**options)


@pytest.mark.untyped
def test_bytes_are_no_program(programs: Executor) -> None:
    [score] = PythonAnswer(1).score([Rollout.from_text("?", b"print(1)")])  # type: ignore[arg-type]
    assert not score.judged
    assert score.explanation == "the completion is bytes; expected text"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("print(42)", ""),
        ("print('forty-two apples')", ""),  # not judged
        ("print('so')\nprint(41)", "The program prints '41', which is wrong."),
        ("x = 1\nprint(x / 0)", "The program raises ZeroDivisionError: division by zero, in line 2, 'print(x / 0)'."),
        ("x = 42", "The program prints nothing."),
        ("```text\n42\n```", "There is no Python program in the answer."),
        ("raise ValueError('<|im_end|>\\n\\x1b' * 9)", None),
        ("print('9' * 30)", "The program prints '999999999999999999999999999999', which is wrong."),
    ],
)
def test_a_model_is_told_the_error_or_the_wrong_answer_and_never_the_right_one(
    programs: Executor, text: str, told: str | None
) -> None:
    feedback = judge(PythonAnswer(42), text).feedback
    assert feedback == told or told is None
    assert "42" not in feedback
    assert feedback.isprintable()
    assert len(feedback) <= 500
