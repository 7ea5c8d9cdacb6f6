"""Programs and limits are checked at the door, before anything is started."""

import json
import re
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Limits, Program, ProgramError


@pytest.mark.untyped
@pytest.mark.parametrize("code", [b"print(1)", None, 7, ["print(1)"]])
def test_code_that_is_no_text_is_refused(code: Any) -> None:
    with pytest.raises(ProgramError, match=r"Program\.code"):
        Program(code)


@pytest.mark.untyped
@pytest.mark.parametrize(
    "wrong",
    [
        {"entry": "f()"},
        {"entry": 3},
        {"calls": [[1]]},
        {"entry": "f", "calls": [1]},
        {"entry": "f", "calls": ["ab"]},
        {"entry": "f", "calls": "ab"},
        {"entry": "f", "calls": [[object()]]},
        {"entry": "f", "calls": [[{1, 2}]]},
        {"inputs": {"x": float("nan")}},
        {"inputs": {"x": float("inf")}},
        {"inputs": {"x": b"1"}},
        {"inputs": {"a b": 1}},
        {"inputs": {1: 1}},
        {"inputs": [1]},
        {"stdin": b"1"},
    ],
    ids=lambda wrong: re.sub(r" at 0x\w+", "", str(wrong)),
)
def test_data_that_is_no_json_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProgramError):
        Program("x = 1", **wrong)


def test_data_nested_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ProgramError):
        Program("", inputs={"x": deep})


def test_a_lone_surrogate_and_a_nul_are_text() -> None:
    """Whether they are Python is for the sandbox to say; writing the request must not fail."""
    code = "# \udcff\x00"
    text = Program(code, inputs={"x": "\ud800"}).as_json()
    assert text.isascii()
    assert json.loads(text)["code"] == code


def test_equal_programs_have_equal_json() -> None:
    one = Program("x", entry="f", calls=[[1]], inputs={"a": 1, "b": 2})
    same = Program("x", entry="f", calls=((1,),), inputs={"b": 2, "a": 1})
    assert one.as_json() == same.as_json() != Program("x").as_json()


@pytest.mark.untyped
@pytest.mark.parametrize(
    "wrong",
    [
        {"fuel": 0},
        {"fuel": 1.5},
        {"memory_bytes": -1},
        {"output_bytes": True},
        {"cpu_seconds": 0},
        {"wall_seconds": float("inf")},
        {"wall_seconds": float("nan")},
        {"value_bytes": "1"},
    ],
    ids=str,
)
def test_a_limit_that_limits_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Limits(**wrong)


def test_names_are_read_as_python_reads_them() -> None:
    """Full-width letters are the plain ones in source, so they are in the request."""
    sent = json.loads(Program("", entry="ａｄｄ", inputs={"ｘ": 1}).as_json())
    assert (sent["entry"], sent["inputs"]) == ("add", {"x": 1})
    with pytest.raises(ProgramError, match="the same one"):
        Program("", inputs={"ｘ": 1, "x": 2})
