"""A pydantic class as reward: what it accepts, where it refuses, and that its validators cannot end a search."""

from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from nabla_agents import ConfigurationError, Prompt, PydanticClass, Rollout, Score


class Line(BaseModel):
    price: int = Field(ge=0)


class Bill(BaseModel):
    """A bill whose total no grammar can tell."""

    lines: list[Line]
    total: int
    note: int | str | None = Field(default=None, alias="remark")

    @field_validator("note")
    @classmethod
    def _divides(cls, value: Any) -> Any:
        return value if not isinstance(value, int) else 1 // value

    @model_validator(mode="after")
    def _adds_up(self) -> "Bill":
        if self.total != sum(line.price for line in self.lines):
            raise ValueError("the total is the sum of the prices")
        return self


RIGHT = '{"lines": [{"price": 3}, {"price": 4}], "total": 7}'


def judged(text: str, prompt: str = "", **options: Any) -> Score:
    [score] = PydanticClass(Bill, **options).score([Rollout(Prompt((), prompt, ()), (), text)])
    return score


@pytest.mark.parametrize(
    "text", [RIGHT, f" {RIGHT}\n", f"<think>3 + 4 = 8</think>\n{RIGHT}", f"So:\n```json\n{RIGHT}\n```"]
)
def test_what_the_class_accepts_is_verified_unless_it_only_counts(text: str) -> None:
    score = judged(text)
    assert (score.value, score.verdict, score.verified, score.spans) == (1.0, 1.0, True, ()), score.explanation
    assert judged(text, vouches=False).verified is None
    assert judged(f"3 + 4{'</think>'}{RIGHT}", prompt="<think>\n").verified, "the prompt opened the reasoning"


@pytest.mark.parametrize(
    ("text", "value", "places", "said"),
    [
        ('{"lines": [{"price": 3}], "total": "x"}', 0.5, ['"x"'], "total: Input should be a valid integer"),
        ('{"lines": [{"price": 3}, {"price": -4}], "total": "x"}', 0.5, ["-4", '"x"'], "lines.1.price"),
        ('{"lines": [], "total": 0, "remark": [1]}', 0.5, ["[1]"], "remark.int"),  # one place, two alternatives
        ('{"lines": [{"cost": 3}], "total": 3}', 0.5, ['{"cost": 3}'], "lines.0.price: Field required"),
        ('<think>"x"</think> {"lines": [], "total": "x"}', 0.5, ['"x"'], "total"),
        ('{"lines": [{"price": 3}], "total": 4}', 0.5, [], "Bill: Value error, the total is the sum of the prices"),
        ('{"total": 4}', 0.5, [], "lines: Field required"),
        ("[]", 0.5, [], "Bill: Input should be an object"),
        ('{"lines": [', 0.0, [], "Invalid JSON"),
        ("seven", 0.0, [], "Invalid JSON"),
        ("<think>" + RIGHT, 0.0, [], "Invalid JSON"),
        ("\ud800", 0.0, [], "unable to parse"),
    ],
)
def test_what_it_refuses_has_a_place_where_the_class_names_a_field(
    text: str, value: float, places: list[str], said: str
) -> None:
    score = judged(text, credit=2.0)
    assert (score.value, score.verdict, score.verified) == (value, value, False)
    assert [text[span.start : span.end] for span in score.spans] == places
    assert text.rfind(places[-1]) == score.spans[-1].start if places else not score.spans
    assert {(span.value, span.credit) for span in score.spans} <= {(-1.0, 2.0)}
    assert said in score.explanation


def test_a_validator_that_breaks_has_not_judged() -> None:
    score = judged('{"lines": [], "total": 0, "remark": 0}')
    assert not score.judged
    assert score.explanation == "Bill raised ZeroDivisionError: integer division or modulo by zero"


@pytest.mark.untyped
def test_what_is_no_text_is_not_judged_and_what_is_no_class_refused() -> None:
    assert not judged(None).judged  # type: ignore[arg-type]
    for wrong in (dict, RIGHT, Line(price=1)):
        with pytest.raises(ConfigurationError, match="subclass of pydantic's BaseModel"):
            PydanticClass(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="credit is -1"):
        PydanticClass(Line, credit=-1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RIGHT, ""),
        (
            '{"lines": [{"price": -1}], "total": 0}',
            "The answer is refused: lines.0.price: Input should be greater than or equal to 0.",
        ),
        (
            '{"lines": [], "total": 7}',
            "The answer is refused: Bill: Value error, the total is the sum of the prices.",
        ),
        ("seven", "The answer is refused: Bill: Invalid JSON: expected value at line 1 column 1."),
    ],
)
def test_a_model_is_told_the_refused_field(text: str, told: str) -> None:
    assert judged(text).feedback == told


def test_of_many_refused_fields_a_model_is_told_the_first() -> None:
    told = judged('{"lines": [' + ", ".join(["{}"] * 300) + '], "total": 0}').feedback
    assert told.startswith("The answer is refused: lines.0.price: Field required; lines.1.price: ")
    assert len(told) == 500
