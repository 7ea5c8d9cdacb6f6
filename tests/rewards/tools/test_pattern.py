"""A regular expression as reward: what passes, where it is, and that no text can stall it."""

import math
import time
from typing import Any

import pytest

from nabla_agents import ConfigurationError, Pattern, Rollout


@pytest.mark.parametrize(
    ("pattern", "options", "text", "value", "place"),
    [
        (r"\d{3}-\d{4}", {}, "call 555-1234 now", 1.0, "555-1234"),
        (r"\d{3}-\d{4}", {}, "call me", 0.0, None),
        (r"\d{3}-\d{4}", {"where": "whole"}, " 555-1234\n", 1.0, "555-1234"),
        (r"\d{3}-\d{4}", {"where": "whole"}, "call 555-1234", 0.0, None),
        (r"sorry", {"wanted": False}, "I am sorry.", 0.0, "sorry"),
        (r"sorry", {"wanted": False}, "Yes.", 1.0, None),
        (r"(?i)YES", {}, "yes", 1.0, "yes"),
        (r"^b$", {}, "a\nb", 0.0, None),
        (r"(?m)^b$", {}, "a\nb", 1.0, "b"),
        (r"x*", {}, "y", 1.0, None),  # an empty match has no place
        (r"", {"where": "whole"}, "  ", 1.0, None),
        (r"\N{SNOWMAN}", {}, "a\u2603b", 1.0, "\u2603"),
        (r"b", {}, "\ud800b", 1.0, "b"),
    ],
)
def test_a_pattern_passes_and_is_located(
    pattern: str, options: dict[str, object], text: str, value: float, place: str | None
) -> None:
    score = Pattern(pattern, credit=3.0, **options).judge(text)
    assert (score.value, score.verdict, score.verified) == (value, value, value == 1.0)
    assert [text[s.start : s.end] for s in score.spans] == ([] if place is None else [place])
    assert all((s.value, s.credit) == (1.0 if options.get("wanted", True) else -1.0, 3.0) for s in score.spans)
    assert repr(pattern) in score.explanation


def test_one_condition_among_others_objects_but_does_not_vouch() -> None:
    pattern = Pattern("ok", vouches=False)
    assert [pattern.judge(text).verified for text in ("ok", "no")] == [None, False]


@pytest.mark.parametrize("pattern", [r"^(a|aa)+$", r"(a+)+$|(?:a|b|ab)*c", r"(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5\6$d?a"])
def test_a_search_that_backtracks_is_not_judged_and_ends(pattern: str) -> None:
    started = time.perf_counter()
    score = Pattern(pattern, timeout_seconds=0.2).judge("a" * 5000 + "b" + "ab" * 2000)
    assert time.perf_counter() - started < 10
    assert not score.judged
    assert "longer than 0.2 s" in score.explanation
    assert (score.verdict, score.verified, score.spans) == (None, None, ())


def test_a_text_beyond_the_limit_is_not_judged() -> None:
    assert Pattern("a", max_characters=10).judge("a" * 10).judged
    long = Pattern("a", max_characters=10).judge("a" * 11)
    assert not long.judged
    assert "11 characters" in long.explanation


@pytest.mark.untyped
def test_bytes_are_not_judged() -> None:
    [score] = Pattern("a").score([Rollout.from_text("?", b"a")])  # type: ignore[arg-type]
    assert not score.judged
    assert "bytes" in score.explanation


@pytest.mark.untyped
@pytest.mark.parametrize("pattern", ["(", "[z-a]", "a{2,1}", "*", r"\1", "(?P<n>a)(?P=m)", b"a", None, 3])
def test_what_is_no_expression_is_refused(pattern: object) -> None:
    with pytest.raises(ConfigurationError, match="Pattern"):
        Pattern(pattern)  # type: ignore[arg-type]


@pytest.mark.untyped
@pytest.mark.parametrize(
    "options",
    [{"credit": -1.0}, {"credit": math.nan}, {"timeout_seconds": 0}, {"max_characters": 0}, {"where": "somewhere"}],
)
def test_limits_are_limits(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="Pattern"):
        Pattern("a", **options)  # type: ignore[arg-type]


def test_it_counts_its_calls() -> None:
    scores = Pattern("a").score([Rollout.from_text("?", text) for text in ("a", "b")])
    assert [s.usage.reward_calls for s in scores] == [1, 1]


@pytest.mark.parametrize(
    ("options", "text", "told"),
    [
        ({}, "555-1234", ""),
        ({}, "call me", r"Nothing in the answer matches the regular expression \d{3}-\d{4}."),
        (
            {"where": "whole"},
            "555-1234, or\nlater\x1b",
            r"The answer as a whole must match the regular expression \d{3}-\d{4}, but goes on with ', or\nlater\x1b'.",
        ),
        ({"where": "whole"}, "later", r"The answer as a whole must match the regular expression \d{3}-\d{4}."),
        (
            {"wanted": False},
            "call 555-1234 now",
            r"The answer has '555-1234', which must not match the regular expression \d{3}-\d{4}.",
        ),
        ({"wanted": False}, "call me", ""),
    ],
)
def test_a_model_is_told_what_is_missing_or_must_not_be_there(options: dict[str, Any], text: str, told: str) -> None:
    assert Pattern(r"\d{3}-\d{4}", **options).judge(text).feedback == told
