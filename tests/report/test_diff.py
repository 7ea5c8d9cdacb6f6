"""What changed between two texts: true to both, and found in a time that no text can stretch."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nabla_agents import Step, Trace
from nabla_agents.report import diff
from nabla_agents.report.diff import Diff

TEXTS = st.text(st.sampled_from("ab \n1"), max_size=120) | st.text(max_size=40)


@pytest.mark.parametrize(
    ("old", "new", "pieces", "similarity"),
    [
        ("", "", (), 1.0),
        ("a", "", (("a", ""),), 0.0),
        ("a b", "a c", (("a ", "a "), ("b", "c")), 2 / 3),
        ("7 + 6 = 12.", "7 + 6 = 13.", (("7 + 6 = ",) * 2, ("12", "13"), (".",) * 2), 18 / 20),
        ("x y", "y", (("x ", ""), ("y", "y")), 2 / 4),
    ],
)
def test_pieces_and_similarity(old: str, new: str, pieces: tuple[tuple[str, str], ...], similarity: float) -> None:
    found = Diff.of(old, new)
    assert found.pieces == pieces
    assert found.similarity == pytest.approx(similarity)


@settings(deadline=None, max_examples=200)
@given(TEXTS, TEXTS, st.sampled_from([0, 4, 20_000]))
def test_the_pieces_are_both_texts_whatever_they_are(old: str, new: str, compared: int) -> None:
    """Also where words are compared by anchors alone, or hardly at all."""
    before, diff._COMPARED, diff._COMPARED_WITHIN = (diff._COMPARED, diff._COMPARED_WITHIN), compared, compared
    try:
        found = Diff.of(old, new)
    finally:
        diff._COMPARED, diff._COMPARED_WITHIN = before
    assert "".join(piece for piece, _ in found.pieces) == old
    assert "".join(piece for _, piece in found.pieces) == new
    assert all(one or other for one, other in found.pieces)
    assert 0.0 <= found.similarity <= 1.0
    assert (found.similarity == 1.0) == (old == new)


def test_anchors_find_what_moved_little_in_a_long_text() -> None:
    words = [f"w{i}" for i in range(700)]
    changed = [word.replace("w", "x") if i % 50 == 0 else word for i, word in enumerate(words)]
    found = Diff.of(" ".join(words), " ".join(changed))
    assert [piece for piece in found.pieces if piece[0] != piece[1]] == [("w", "x")] * 14


REPETITIVE = {  # old and new: what difflib alone takes minutes for
    "ab": ("a b " * 1200, "b a " * 1200),
    "shifted": ("a b c " * 800, "x " + "b c a " * 790),
    "digits": ("1 " * 2399 + "2", "3" + " 1" * 2399),
    "punctuation": ("()" * 2400, ")(" * 2399),
    "doubled": ("aab " * 1200, "aba " * 1200),
    "lines": ("a\nb\n" * 50_000, "b\na\n" * 50_000),
    "unique": (" ".join(map(str, range(1200))), " ".join(map(str, reversed(range(1200))))),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", REPETITIVE)
def test_no_text_takes_long(name: str) -> None:
    old, new = REPETITIVE[name]
    began = time.monotonic()
    html = Trace([Step("rollout", "", True, text=old), Step("refine", "", True, text=new)]).to_html()
    assert time.monotonic() - began < 20
    assert html.endswith("</html>\n")
