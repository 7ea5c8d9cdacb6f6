"""Rows of MBPP+: what a question shows, and which answers are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nabla_agents.bench.mbpp_plus import MbppPlus
from nabla_agents.bench.tasks import FileTask, file_task
from nabla_agents.errors import ConfigurationError

ROW: dict[str, Any] = {
    "task_id": "Mbpp/0",
    "prompt": '"""\nWrite a function to halve a number.\nassert half(4) == 2\n"""\n',
    "entry_point": "half",
    "canonical_solution": "\ndef half(n):\n    return n / 2 if n > 0 else (n, {n})\n",
    "base_input": [[4], [6]],
    "plus_input": [[3], [1], [-1]],
    "atol": 0.01,
    "assertion": "import math\n\nassert half(4) == 2\nassert half(6) == 3\nassert math.isclose(half(8), 4)\n",
}


def answer(body: str) -> str:
    return f"Here it is:\n```python\ndef half(n):\n    return {body}\n```"


def test_a_question_shows_two_assertions() -> None:
    assert MbppPlus(ROW).text == "Write a function to halve a number.\nassert half(4) == 2\nassert half(6) == 3"


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("n / 2", True),
        ("n / 2 + 0.005", False),  # within the tolerance of the inputs, but not of the assertions
        ("n / 2 if n > 3 else n / 2 + 0.005", True),
        ("n / 2 if n > 3 else n / 2 + 0.02", False),
        ("n // 2", False),  # the assertions are even numbers
        ("{4: 2, 6: 3}[n]", False),  # what is shown alone
        ("n / 2 if n > 0 else 7", True),  # a reference value that is no JSON judges nothing
        ("n / 2 if n != 1 else 1 / 0", False),
    ],
)
def test_an_answer_is_right_that_passes_all_and_agrees_with_the_reference(body: str, right: bool) -> None:
    assert MbppPlus(ROW).right([answer(body), "No function at all."]) == [right, False]


@pytest.mark.slow
def test_a_slow_reference_judges_by_the_inputs_that_it_manages() -> None:
    slow = {**ROW, "canonical_solution": "def half(n):\n    while n == 1: pass\n    return n / 2\n"}
    question = MbppPlus(slow)
    assert question.right([answer("n / 2"), answer("n // 2")]) == [True, False]


def test_a_file_of_rows_is_a_task_from_any_row_on(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt": ROW["prompt"].replace("a number", f"number {i}")} for i in range(3)]
    path = tmp_path / "mbpp.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    prompt = "Answer in Python.\n{question}"
    task = file_task(FileTask(path=path, kind="mbpp-plus", prompt=prompt, skip=1))
    first, second = task.draw(9, 0)
    assert first.text.startswith("Answer in Python.\nWrite a function to halve number 1.\nassert half(4) == 2")
    assert second.right([answer("n / 2")]) == [True]


@pytest.mark.parametrize("changed", [{"assertion": ""}, {"prompt": "no literal"}, {"atol": None}, {"entry_point": 3}])
def test_what_is_no_row_is_refused_with_its_line(changed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps({**ROW, **changed}))
    with pytest.raises(ConfigurationError, match=r"mbpp\.jsonl:1"):
        file_task(FileTask(path=path, kind="mbpp-plus"))
