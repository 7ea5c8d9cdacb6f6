"""The recipes as they are written; `make cookbook` runs them."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

COOKBOOK = Path(__file__).resolve().parent.parent / "cookbook"
RECIPES = sorted(COOKBOOK.glob("[0-9][0-9]_*.py"))


@pytest.fixture(scope="module")
def runner() -> dict[str, Any]:
    return runpy.run_path(str(COOKBOOK / "__main__.py"), run_name="runner")


def test_recipes_are_numbered_without_a_gap_and_listed_in_order() -> None:
    assert [int(recipe.name[:2]) for recipe in RECIPES] == list(range(1, len(RECIPES) + 1))
    listed = re.findall(r"^\| \[\d\d [^]]+\]\(([^)]+)\)", (COOKBOOK / "README.md").read_text(), re.MULTILINE)
    assert listed == [recipe.name for recipe in RECIPES]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_short_and_says_what_it_prints_and_what_a_real_model_needs(recipe: Path, runner: Any) -> None:
    source = recipe.read_text()
    assert len(source.splitlines()) <= 150
    assert source.startswith('"""')
    assert "\nReal model and GPU: " in source.split('"""')[1]
    assert runner["expected"](source).strip()


def test_a_difference_is_found_and_what_stands_for_any_text_is_not() -> None:
    difference = runpy.run_path(str(COOKBOOK / "__main__.py"), run_name="runner")["difference"]
    assert difference("seconds: ...\nright: 3\n", "seconds: 0.42\nright: 3\n") == ""
    assert "right: 4" in difference("seconds: ...\nright: 3\n", "seconds: 0.42\nright: 4\n")
    assert difference("right: 3\n", "right: 3\nAnswer: 3\n")
    assert difference("", "Answer: 3\n")


def test_what_is_expected_stands_under_the_mark(runner: Any) -> None:
    assert runner["expected"]("print(1)\n\n# Prints:\n# one\n#\n#   two\n") == "one\n\n  two\n"


def test_a_recipe_that_fails_or_prints_something_else_is_a_problem(runner: Any, tmp_path: Path) -> None:
    good, other, broken = (tmp_path / f"{i}_recipe.py" for i in ("01", "02", "03"))
    good.write_text("print(1 + 1)\n# Prints:\n# 2\n")
    other.write_text("print(1 + 2)\n# Prints:\n# 2\n")
    broken.write_text("raise ValueError('no soup')\n# Prints:\n# 2\n")
    assert runner["run"](good).problem == ""
    assert "3" in runner["run"](other).problem
    assert "no soup" in runner["run"](broken).problem
