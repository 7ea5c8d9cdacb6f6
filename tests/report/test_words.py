"""Words for steps, scores, costs and changes; expected texts by hand."""

from __future__ import annotations

import json
import math

import pytest
from rich.text import Text

from nabla_agents import FinishReason, Result, Score, Span, Step, Trace, Usage
from nabla_agents.report.terminal import as_json, changed, described, facts, indented
from nabla_agents.report.words import computed, doing, draft, human, judged, printable, spent
from nabla_agents.tiny import Problem
from nabla_agents.types import Doing

PROBLEM = Problem("How much is 3 * 4?", "3 * 4 = 12\nAnswer: 12", "12")


def step(**fields: object) -> Step:
    given = {
        "kind": "refine",
        "committed_text": "3 * 4 = 12",
        "accepted": True,
        "position": 4,
        "old_token": "1",
        "new_token": "12",
        "ranking_score": 1.5,
        "gain": -0.25,
        "score": Score(2.0),
        "text": "3 * 4 = 12\nAnswer: 12",
    }
    return Step(**{**given, **fields})


def result(text: str = "Answer: 12", first: str = "Answer: 1", **fields: object) -> Result:
    given = {
        "token_ids": (),
        "score": None,
        "finish_reason": FinishReason.STOP,
        "usage": Usage(rollouts=2, gradient_passes=1),
        "trace": Trace((Step("rollout", "", text=first), Step("commit", text, text=text))),
    }
    return Result(text, **{**given, **fields})


def styled(text: Text, piece: str) -> set[str]:
    """The styles of the only occurrence of a piece."""
    assert text.plain.count(piece) == 1
    at = text.plain.index(piece)
    return {str(s.style) for s in text.spans if s.start <= at and at + len(piece) <= s.end}


def test_a_kept_change_shows_old_and_new_token_with_promise_gain_and_reward() -> None:
    line = described(step(), 2)
    assert line.plain == "✓ 3 * 4 = 1 → 12  ranked by +1.50 · realised -0.25 · reward 2.00 · accepted"
    assert styled(line, "1 ") == set()
    assert styled(line, " → ") == set()
    assert styled(line, "12") == {"bold green"}


def test_a_rejected_change_keeps_the_old_token_bold() -> None:
    line = described(step(accepted=False, committed_text="3 * 4 = 1", gain=math.nan, ranking_score=None), 2)
    assert line.plain == "✗ 3 * 4 = 1 → 12  ranked by unknown · realised unknown · reward 2.00 · rejected"
    assert styled(line, "12") == {"dim strike"}


@pytest.mark.parametrize(("verified", "colour"), [(True, "green"), (False, "red")])
def test_what_a_tool_says_stands_below_in_its_colour(verified: bool, colour: str) -> None:
    score = Score(2.0, 2.0, verified, explanation="1 of 3\ntests passed \x1b[2J" + " word" * 100)
    line = described(step(score=score), 2)
    head, said = line.plain.splitlines()
    assert head.endswith("accepted")
    assert said.startswith("  1 of 3 tests passed \ufffd[2J word")
    assert said.endswith("word …")
    assert len(said) <= 162
    assert styled(line, said) == {colour}
    assert "\n" not in described(step(score=Score(2.0, explanation="a model's")), 2).plain


def test_only_the_end_of_the_changed_line_is_shown() -> None:
    long = "first line\n" + "x" * 100 + "yz"
    line = described(step(committed_text=long, old_token="a", new_token="z"), 1).plain
    assert line.startswith("✓ " + "x" * 31 + "ya → z")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (None, ""),
        (Doing("reading the prompt", 1, 0, 9.0), "reading the prompt"),
        (Doing("writing", 1, 1, 0.5), "writing 1 answer: 1 token"),
        (Doing("writing", 8, 120, 4.0), "writing 8 answers: 120 tokens, 30 tokens/s"),
    ],
)
def test_what_a_search_is_at(now: Doing | None, said: str) -> None:
    assert doing(now) == said


def test_line_ends_and_tabs_in_tokens_are_visible() -> None:
    assert "1 → ⏎⇥2" in described(step(committed_text="3 * 4 = \n\t2", new_token="\n\t2"), 1).plain


def test_a_rollout_has_its_number_score_and_log_likelihood() -> None:
    line = described(step(kind="rollout", log_likelihood=-3.456), 7)
    assert line.plain == "✓ rollout 7  reward 2.00 · log-likelihood -3.46"


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (None, "no reward"),
        (Score(math.nan, explanation="no\nequation"), "not judged: no equation"),
        (Score(-0.001), "reward 0.00"),
        (Score(1.0, verdict=1.0, verified=True), "reward 1.00, verified"),
        (Score(3.5, verdict=2.0), "reward 3.50, tools 2.00"),
        (Score(-math.inf), "reward -inf"),
    ],
)
def test_a_score_in_words(score: Score | None, words: str) -> None:
    assert judged(score) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (999.4, "999"),
        (999.5, "1k"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (1e9, "1G"),
        (1e24, "1e+06E"),
    ],
)
def test_counts_have_three_digits_and_a_prefix(number: float, words: str) -> None:
    assert human(number) == words


def test_costs_of_models_and_rewards_are_added() -> None:
    usage = Usage(
        rollouts=1,
        gradient_passes=2,
        lm_forward_tokens=1000,
        reward_forward_tokens=500,
        lm_backward_tokens=7,
        reward_backward_tokens=3,
        flops=2.5e9,
    )
    assert spent(usage) == "1 rollout · 2 gradient passes"
    assert spent(Usage(rollouts=2, gradient_passes=1)) == "2 rollouts · 1 gradient pass"
    assert computed(usage) == "1.5k tokens forward · 10 backward · 2.5 GFLOP"


def test_a_known_answer_is_called_correct_or_wrong_and_so_is_the_draft() -> None:
    rows = {name: value.plain for name, value in facts(result(), PROBLEM)}
    assert rows["expected"] == "12 · answer correct · draft wrong"
    same = {name: value.plain for name, value in facts(result("Answer: 1"), PROBLEM)}
    assert same["expected"] == "12 · answer wrong"
    assert "expected" not in dict(facts(result(), None))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "nothing promising left to change"),
        ({"usage": Usage(rollouts=1)}, "nothing left to do"),
        ({"truncated": True}, "nothing promising left to change · cut by the length limit"),
        ({"finish_reason": FinishReason.BUDGET, "detail": "rollouts 8/8"}, "budget spent: rollouts 8/8"),
        ({"finish_reason": FinishReason.VERIFIED, "detail": "all right"}, "verified by a tool"),
        ({"finish_reason": FinishReason.INTERRUPTED}, "interrupted, the best so far is shown"),
    ],
)
def test_why_a_search_ended(fields: dict[str, object], words: str) -> None:
    assert facts(result(**fields), None)[0][1].plain == words


def test_a_search_without_any_rollout_has_no_score_and_no_draft() -> None:
    nothing = result("", trace=Trace(), finish_reason=FinishReason.INTERRUPTED, usage=Usage())
    assert draft(nothing.trace) == ""
    assert [name for name, _ in facts(nothing, None)] == ["ended", "spent", "computed"]
    assert changed("", "").plain == "(no answer yet)"
    assert indented("") == "  (no answer yet)"


def test_the_change_strikes_what_went_and_shows_what_came() -> None:
    text = changed("9 * 9 = 77\nAnswer: 77", "9 * 9 = 81\nAnswer: 81")
    assert text.plain == "9 * 9 = 77 81\nAnswer: 77 81"
    by_style: dict[str, str] = {}
    for span in text.spans:
        by_style[str(span.style)] = by_style.get(str(span.style), "") + text.plain[span.start : span.end]
    assert by_style == {"red strike": "7777", "bold green": "8181"}


def test_an_answer_that_has_little_of_the_draft_stands_below_it() -> None:
    assert changed("a b c d", "1 2 3 4 5 6 7 8").plain == "a b c d\n\n1 2 3 4 5 6 7 8"
    assert not changed("same", "same").spans


def test_no_text_drives_the_terminal() -> None:
    hostile = "a\x1b[31mb\rc\x07\x9b2J\x7f\x00d\n\te"
    assert printable(hostile) == "a\ufffd[31mb\ufffdc\ufffd\ufffd2J\ufffd\ufffdd\n\te"
    shown = (
        described(step(committed_text=hostile, new_token="\x1bc"), 1).plain,
        changed(hostile, hostile + "f").plain,
        indented(hostile),
        facts(result(score=Score(1.0, explanation=hostile), log_likelihood=0.0), None)[2][1].plain,
        judged(Score(math.nan, explanation=hostile)),
    )
    assert not any(c in text for text in shown for c in "\x1b\r\x07\x9b\x7f\x00")


def test_records_become_json_without_nan() -> None:
    score = Score(math.nan, spans=(Span(0, 1, -1.0, "2"),), explanation="é")
    found = json.loads(json.dumps(as_json({"s": score, 1: (math.inf, -math.inf, 2.5, True, None)}), allow_nan=False))
    assert found["1"] == [None, None, 2.5, True, None]
    assert found["s"]["value"] is None
    assert found["s"]["spans"] == [
        {"start": 0, "end": 1, "value": -1.0, "expected": "2", "explanation": "", "credit": 1.0}
    ]
    assert as_json(FinishReason.STOP) == "stop"
