"""The word problems: exact, reproducible, and in splits that share no computation."""

import re
import subprocess
import sys

import pytest

from nabla_agents.errors import ConfigurationError
from nabla_agents.tiny import Problem, is_correct, problems

SPLITS = ("train", "test", "validation")


def computation(problem: Problem) -> tuple[tuple[int, str, int, int], ...]:
    equations = re.findall(r"^(\d+) ([-+*/]) (\d+) = (\d+)$", problem.solution, re.MULTILINE)
    return tuple((int(a), operation, int(b), int(c)) for a, operation, b, c in equations)


def test_splits_share_no_computation() -> None:
    chains = {
        split: {computation(p) for seed in (0, 1) for p in problems(500, seed=seed, split=split)} for split in SPLITS
    }
    assert all(len(chains[split]) > 950 for split in SPLITS)
    assert not chains["train"] & chains["test"]
    assert not chains["train"] & chains["validation"]
    assert not chains["test"] & chains["validation"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_solution_is_exact_and_leads_to_the_answer(split: str) -> None:
    for problem in problems(400, seed=3, split=split):
        steps = computation(problem)
        assert 2 <= len(steps) <= 5
        assert len(problem.solution.split("\n")) == len(steps) + 1  # nothing but equations and the answer
        value = steps[0][0]
        for left, operation, right, result in steps:
            assert left == value
            exact = {"+": left + right, "-": left - right, "*": left * right}
            if operation == "/":
                assert result * right == left
            else:
                assert result == exact[operation]
            assert 1 <= result <= 999
            assert operation in "+-" or 2 <= right <= 9
            value = result
        assert problem.answer == str(value)
        assert problem.solution.endswith(f"\nAnswer: {value}")


def test_the_story_names_every_number_in_order() -> None:
    for problem in problems(500, seed=4):
        steps = computation(problem)
        assert re.findall(r"\d+", problem.question) == [str(steps[0][0]), *(str(step[2]) for step in steps)]
        assert problem.question.endswith("?")


def test_one_seed_gives_one_list_and_longer_lists_begin_with_shorter() -> None:
    assert problems(50, seed=7) == problems(80, seed=7)[:50]
    assert problems(50, seed=7) != problems(50, seed=8)
    assert problems(0, seed=7) == []


def test_unknown_split_and_negative_count_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'validation'"):
        problems(1, seed=0, split="dev")
    with pytest.raises(ConfigurationError, match="n=-1"):
        problems(-1, seed=0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1 + 1 = 2\nAnswer: 138", True),
        ("Answer: 138.", True),
        ("  Answer:   138  \n", True),
        ("Answer: 0138", True),
        ("Answer: 138\n\nAnother: 5 + 5 = 10\nAnswer: 10", True),
        ("Answer: 10\nAnswer: 138", False),
        ("Answer: 139", False),
        ("Answer: -138", False),
        ("Answer: 13", False),
        ("Answer: 138 apples", False),
        ("Answer: 13,8", False),
        ("Answer: 138.0", False),
        ("Answer: １３８", False),
        ("Answer: ١٣٨", False),
        ("Answer: " + "9" * 10_000, False),
        ("The answer is 138", False),
        ("138", False),
        ("Answer:", False),
        ("Answer:\n138", False),
        ("", False),
        ("\ud800 Answer", False),
        (None, False),
        (138, False),
        (b"Answer: 138", False),
    ],
)
def test_is_correct_reads_the_first_answer_line(text: object, verdict: bool) -> None:
    assert is_correct(text, Problem("", "", "138")) is verdict


def test_is_correct_allows_thousands_separators() -> None:
    assert is_correct("Answer: 1,138", Problem("", "", "1138"))
    assert not is_correct("Answer: 11,38", Problem("", "", "1138"))


def test_own_solutions_are_correct() -> None:
    assert all(is_correct(problem.solution, problem) for problem in problems(200, seed=5))


def test_importing_the_package_imports_no_framework() -> None:
    check = "import sys, nabla_agents.tiny; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
