"""The page of a trace: whole, safe whatever the model wrote, and true to the steps."""

from __future__ import annotations

import copy
import math
import pickle
import re
from html.parser import HTMLParser

import pytest
from pydantic import TypeAdapter

from nabla_agents import Engine, FinishReason, MirrorDTO, Nabla, Result, Score, Span, Step, Trace, Usage, tiny
from nabla_agents.report import fragment, page
from nabla_agents.types import TokenGain

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\x00\ud7ff\ud800"
_VOID = {"meta", "circle", "polyline", "br"}


class Reader(HTMLParser):
    """Tags with their text; fails on what is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.texts)


def refined() -> list[Step]:
    wrong = Score(-1.0, -1.0, False, (Span(8, 10, -1.0, "13", "7 + 6 is 13"),), "1 of 2 wrong")
    right = Score(1.0, 1.0, True, explanation="2 equations are right")
    gains = (TokenGain(8, 9, "x", 0.5), TokenGain(9, 10, "3", 4.0))
    return [
        Step(
            "rollout",
            "",
            True,
            log_likelihood=-1.5,
            score=wrong,
            text="7 + 6 = 12\nAnswer: 12",
            usage=Usage(rollouts=1),
        ),
        Step(
            "refine",
            "7 + 6 = 13",
            True,
            9,
            "2",
            "3",
            ranking_score=4.0,
            gain=2.25,
            kl=0.75,
            log_likelihood=-2.5,
            score=right,
            text="7 + 6 = 13\nAnswer: 13",
            usage=Usage(rollouts=2, gradient_passes=1, flops=2.5e9),
            gains=gains,
        ),
        Step("commit", "7 + 6 = 13\nAnswer: 13", usage=Usage(rollouts=2, gradient_passes=1, flops=2.5e9), done=True),
    ]


def test_the_page_is_well_formed_and_asks_nothing_of_the_network() -> None:
    html = page(refined(), title="7 + 6", question="What is 7 + 6?")
    read = Reader(html)
    assert html.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in read.tags}
    assert not re.search(r"https?:|url\(|@import", html)
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in read.tags)
    assert read.of("title") == ["7 + 6"]


def test_it_shows_draft_answer_change_and_verdict() -> None:
    read = Reader(page(refined(), question="What is 7 + 6?"))
    assert "What is 7 + 6?" in read.of("pre")
    assert read.of("del")[:2] == ["12", "12"]
    assert read.of("ins")[:2] == ["13", "13"]
    assert "reward 1.00, verified – 2 equations are right" in read.text
    assert (
        "accepted ranked by +4.00 · realised +2.25 · reward 1.00, verified · log-likelihood -2.50 · KL 0.75"
        in read.text
    )
    assert read.of("u") == ["12"]
    assert {"title": "7 + 6 is 13 (expected 13)"} in [attributes for tag, attributes in read.tags if tag == "u"]


def test_the_colour_of_a_token_is_as_strong_as_its_ranking_score() -> None:
    read = Reader(page(refined()))
    styles = [a["style"] for tag, a in read.tags if tag == "span" and "title" in a]
    assert styles == ["background:rgba(var(--hot),0.08)", "background:rgba(var(--hot),0.60)"]  # 0.75 of 0.5 / 5, 4 / 5


def test_the_ledger_is_that_of_the_last_step() -> None:
    read = Reader(page(refined()))
    cells = read.of("td")
    assert dict(zip(cells[::2], cells[1::2], strict=True)) == {
        "rollouts": "2",
        "gradient passes": "1",
        "flops": "2.5e+09",
    }


def test_the_curve_has_one_dot_for_each_step_and_its_ends_where_the_values_are() -> None:
    """Rewards -1 and 1 at the ends of the axis: x 46 and 346, y 122 (lowest) and 12 (highest)."""
    html = page(refined())
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', html)
    assert dots[:2] == [("46.0", "122.0"), ("346.0", "12.0")]
    names = re.findall(r'aria-label="([^"]+)"', html)
    assert names == ["Reward", "Log-likelihood, nats", "KL divergence of the kept changes, nats"]


@pytest.mark.parametrize("field", ["text", "old_token", "new_token", "explanation", "question", "title", "expected"])
def test_hostile_text_is_text(field: str) -> None:
    spans = (Span(0, 3, -1.0, HOSTILE if field == "expected" else "b", HOSTILE if field == "explanation" else ""),)
    score = Score(0.0, spans=spans, explanation=HOSTILE if field == "explanation" else "")
    step = Step(
        "refine",
        "",
        True,
        0,
        HOSTILE if field == "old_token" else "a",
        HOSTILE if field == "new_token" else "b",
        1.0,
        1.0,
        score=score,
        text=HOSTILE if field == "text" else "abc",
    )
    html = page(
        [step, step],
        title=HOSTILE if field == "title" else "t",
        question=HOSTILE if field == "question" else "q",
    )
    html.encode()
    read = Reader(html)
    assert not {"script", "img"} & {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_traces_without_steps_scores_or_numbers_have_a_page() -> None:
    assert "Nothing was tried" in Reader(fragment([])).text
    bare = Step("rollout", "", True, text="x")
    assert "Draft" not in Reader(page([bare])).text
    unjudged = Step("rollout", "", text="y", score=Score.not_judged("no sandbox"), log_likelihood=-math.inf)
    text = Reader(page([bare, unjudged, bare])).text
    assert "not judged" in text
    assert "no sandbox" in text


def test_spans_and_gains_that_do_not_fit_the_text_are_left_out() -> None:
    score = Score(0.0, spans=(Span(0, 9, -1.0), Span(1, 2, -1.0), Span(1, 3, -1.0), Span(2, 2, -1.0)))
    gains = (TokenGain(0, 2, "a", 1.0), TokenGain(1, 3, "b", 1.0), TokenGain(3, 9, "c", 1.0))
    steps = [Step("rollout", "", True, text="wxyz", score=score), Step("refine", "", text="w", gains=gains)]
    read = Reader(page(steps))
    assert read.of("u") == ["x"]
    heated = [attributes["title"] for tag, attributes in read.tags if tag == "span" and "title" in attributes]
    assert len(heated) == 1
    assert read.of("pre")[0] == "wxyz"


def test_a_branch_shows_what_it_keeps_and_what_a_model_is_told_of_it() -> None:
    """The place of the branch is where the answer before it ends to be the same; a mark across it falls away."""
    told = Score(0.0, verdict=0.0, verified=False, explanation="f(1) gave 3", feedback="f(1) returned <b>, expected 2")
    spans = (Span(0, 1, -1.0), Span(3, 5, -1.0), Span(5, 6, -1.0))
    branch = Step("refine", "", text="abcdXY", score=Score(0.0, spans=spans))
    read = Reader(page([Step("rollout", "", True, text="abcdef", score=told), branch]))
    assert "abcd" not in read.of("span")
    assert read.of("u") == ["a", "Y"]
    assert "bcd" in read.of("span")
    assert "“f(1) returned <b>, expected 2”" in read.text


def test_where_nothing_promises_anything_no_colours_are_explained() -> None:
    silent = Step("refine", "", text="w", gains=(TokenGain(0, 1, "a", 0.0),))
    assert "promises most" not in page([Step("rollout", "", True, text="wx"), silent])


def test_the_divergence_grows_by_what_was_kept_and_by_nothing_else() -> None:
    """Rows of 0.5, 2 and 1 nats, the second not kept: 0, 0.5, 2.5 tried, then 1.5; high is y 12, low y 122."""
    kinds = [("rollout", True, None), ("refine", True, 0.5), ("refine", False, 2.0), ("refine", True, 1.0)]
    html = page([Step(kind, "", kept, text="x", kl=kl) for kind, kept, kl in kinds])
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', html)]
    assert heights == pytest.approx([122 - 44 * v for v in (0.0, 0.5, 2.5, 1.5)])
    line = re.findall(r"points=\"([^\"]+)\"", html)[0].split()
    assert [float(point.split(",")[1]) for point in line] == pytest.approx([122, 100, 100, 56], abs=0.1)


def test_the_answer_is_the_returned_one_and_the_draft_the_first() -> None:
    """A vote may choose a completion that no step kept."""
    tried = [Step("rollout", "", False, text="Answer: 1"), Step("rollout", "", True, text="Answer: 2")]
    read = Reader(page([*tried, Step("commit", "Answer: 3", True, text="Answer: 3", done=True)]))
    assert read.of("del")[0] == "1"
    assert read.of("ins")[0] == "3"


def test_a_trace_is_a_tuple_that_shows_itself_and_survives_copies() -> None:
    trace = Trace(refined(), question="What is 7 + 6?")
    assert trace == tuple(refined())
    assert trace.to_html(title="7 + 6") == page(refined(), title="7 + 6", question="What is 7 + 6?")
    assert trace._repr_html_() == fragment(refined(), question="What is 7 + 6?")
    result = Result("7", (), None, FinishReason.STOP, Usage(), trace)
    assert result._repr_html_() == trace._repr_html_()
    for copied in (pickle.loads(pickle.dumps(trace)), copy.copy(trace), copy.deepcopy(result).trace):
        assert isinstance(copied, Trace)
        assert copied.question == "What is 7 + 6?"
        assert repr(copied) == repr(trace)


def test_a_search_has_the_divergence_of_each_row_and_the_question() -> None:
    question = tiny.problems(28, seed=0, split="test")[-1].question
    engine = Engine.tiny(strategy=Nabla(dto=MirrorDTO(kl_budget=0.25), min_promise=-6.0))
    trace = engine.generate(question).trace
    spent = [step.kl for step in trace if step.kind == "refine"]
    assert spent
    assert all(kl is not None and 0 <= kl <= 0.2501 for kl in spent)
    assert trace.question == question
    assert question in Reader(trace.to_html()).of("pre")[0]


def test_a_long_answer_is_compared_by_lines_in_reasonable_time() -> None:
    """3,000 lines, one of them changed; word by word this takes minutes."""
    lines = [f"line {i}: {i} * 7 = {i * 7}" for i in range(3000)]
    old = "\n".join(lines)
    lines[1500] = "line 1500: 1500 * 7 = 0"
    read = Reader(page([Step("rollout", "", True, text=old), Step("refine", "", True, text="\n".join(lines))]))
    assert read.of("ins") == ["line 1500: 1500 * 7 = 0\n"]


def test_a_pydantic_model_may_hold_a_trace() -> None:
    adapter = TypeAdapter(Trace)
    trace = adapter.validate_python(adapter.dump_python(Trace(refined(), question="What is 7 + 6?")))
    assert isinstance(trace, Trace)
    assert [step.text for step in trace] == [step.text for step in refined()]
