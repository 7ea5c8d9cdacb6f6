"""Foreign text: of the length that is asked for, repeatable, of many kinds, and without a question to answer."""

import json
from random import Random

import pytest

from benchmarks.tiny.foreign import foreign_text


@pytest.mark.parametrize("characters", [0, 1, 7, 400, 5000])
def test_it_has_the_length_that_was_asked_for(characters: int) -> None:
    assert len(foreign_text(Random(0), characters)) == characters


def test_one_seed_gives_one_text() -> None:
    assert foreign_text(Random(3), 900) == foreign_text(Random(3), 900)
    assert foreign_text(Random(3), 900) != foreign_text(Random(4), 900)


def test_it_is_of_many_kinds_and_asks_nothing_that_is_taught() -> None:
    text = foreign_text(Random(5), 60_000)
    blocks = text.split("\n\n")[:-1]
    assert any(block.startswith("def ") for block in blocks)
    assert any(block.startswith("{") and json.loads(block)["type"] == "function" for block in blocks)
    assert any(block[:2] in ("- ", "* ", "# ") for block in blocks)
    assert any(not block.isascii() for block in blocks)
    assert sum(character.isdigit() for character in text) > 1000
    assert "How many" not in text
    assert "Write" not in text
    assert "<|" not in text
