"""The code tasks: right by CPython, reproducible, told apart by their tests, and in splits that share no task."""

import re
from typing import Any

import pytest

from nabla_agents.errors import ConfigurationError
from nabla_agents.tiny import CodeTask, code_tasks

SPLITS = ("train", "test", "validation")


def run(code: str, entry: str, arguments: tuple[list[int]]) -> Any:
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope[entry](*(list(argument) for argument in arguments))


def program(task: CodeTask) -> str:
    fenced = re.fullmatch(r"```python\n(def (\w+)\(xs\):\n.*)\n```", task.solution, re.DOTALL)
    assert fenced is not None
    assert fenced[2] == task.entry
    return fenced[1]


def described(task: CodeTask) -> str:
    """The description without the function's name and without the tests."""
    return task.question.partition("\n\n")[0].replace(task.entry, "")


@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_passes_its_tests_and_the_question_shows_the_first_three(split: str) -> None:
    for task in code_tasks(150, seed=3, split=split):
        code = program(task)
        assert len(task.tests) == 3
        assert len(task.hidden_tests) == 8
        for arguments, expected in task.tests + task.hidden_tests:
            assert run(code, task.entry, arguments) == expected
        shown = task.question.partition("\n\n")[2].split("\n")
        assert shown == [f"assert {task.entry}({xs!r}) == {result!r}" for (xs,), result in task.tests]
        exec("\n".join([code, *shown]), {})


def test_no_list_is_tried_twice_and_none_is_of_a_shape_that_gives_the_answer_away() -> None:
    for task in code_tasks(150, seed=4):
        lists = [xs for (xs,), _ in task.tests + task.hidden_tests]
        assert len({tuple(xs) for xs in lists}) == 11
        assert all(4 <= len(xs) <= 6 and all(0 <= x <= 20 for x in xs) for xs in lists)


def test_the_shown_tests_tell_another_reading_of_a_line_from_the_one_meant() -> None:
    swaps = (
        (r"sorted\(xs\)$", "sorted(xs, reverse=True)"),
        (r"sorted\(xs, reverse=True\)", "sorted(xs)"),
        (r"xs\[::2\]", "xs[1::2]"),
        (r"x // 2 for", "x / 2 for"),
        (r"enumerate\(xs\)", "enumerate(xs, 1)"),
        (r"xs\.index\(max\(xs\)\)$", "xs.index(max(xs)) + 1"),
        (r"if x > (\d+)", r"if x >= \1"),
    )
    tried = 0
    for task in code_tasks(400, seed=5):
        code = program(task)
        for pattern, other in swaps:
            changed = re.sub(pattern, other, code, flags=re.MULTILINE)
            if changed == code:
                continue
            tried += 1
            with pytest.raises((AssertionError, IndexError, ValueError, ZeroDivisionError)):
                exec("\n".join([changed, task.question.partition("\n\n")[2]]), {})
    assert tried > 100


def test_one_wording_is_meant_in_more_than_one_way() -> None:
    """Of some fifty tasks that say to sort, about 0.7 mean ascending; 0.4 is 4 deviations away, and 1 out of reach."""
    sorting = [program(task) for task in code_tasks(1500, seed=6) if "sort them" in task.question]
    ascending = sum("sorted(xs)\n" in code for code in sorting)
    assert len(sorting) > 30
    assert 0.4 < ascending / len(sorting) < 0.95


def test_splits_share_no_description_with_the_same_numbers() -> None:
    found = {split: {described(t) for t in code_tasks(400, seed=7, split=split)} for split in SPLITS}
    assert all(len(found[split]) > 350 for split in SPLITS)
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["test"] & found["validation"]


def test_one_seed_gives_one_list_and_longer_lists_begin_with_shorter() -> None:
    assert code_tasks(20, seed=7) == code_tasks(40, seed=7)[:20]
    assert code_tasks(20, seed=7) != code_tasks(20, seed=8)
    assert code_tasks(0, seed=7) == []


def test_unknown_split_and_negative_count_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"code_tasks\(\) got split='dev'.*'validation'"):
        code_tasks(1, seed=0, split="dev")
    with pytest.raises(ConfigurationError, match=r"code_tasks\(\) got n=-1"):
        code_tasks(-1, seed=0)
