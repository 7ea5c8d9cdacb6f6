"""What a person, a pipe and a program see of a real search; the terminal is rich's own, recorded."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from nabla_agents import Engine, FinishReason, Message, Result, Step, Trace
from nabla_agents.report import JsonView, LiveView, NotebookView, PlainView, View
from nabla_agents.run import Run
from nabla_agents.tiny import problems
from nabla_agents.types import Doing

[*_, PROBLEM] = problems(28, seed=0, split="test")
HIDE, SHOW, ERASE = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
CODES = re.compile(r"\x1b\[[?\d;]*[a-zA-Z]")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.tiny()


@dataclass
class Search:
    """A search that has ended: what a view gets."""

    steps: list[Step]
    result: Result


@pytest.fixture(scope="module")
def search(engine: Engine) -> Search:
    """One whose draft is wrong and whose answer is right: two tokens are changed."""
    run = engine.steps(PROBLEM.question, seed=0)
    steps = list(run)
    assert [step.kind for step in steps if step.accepted] == ["rollout", "refine", "refine", "commit"]
    return Search(steps, run.result)


def terminal(width: int = 100, height: int = 30, **environment: str) -> Console:
    environment = {"TERM": "xterm-256color", **environment}
    return Console(
        file=StringIO(), force_terminal=True, width=width, height=height, highlight=False, _environ=environment
    )


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def frame(output: str) -> list[tuple[str, str]]:
    """The last frame of a live view as (style, text): what was written since the one before was erased."""
    pieces, style = [], ""
    for part in re.split(r"(\x1b\[[\d;]*m)", output.rsplit(ERASE, 1)[-1]):
        if part.startswith("\x1b["):
            style = part[2:-1]
        elif part:
            pieces.append((style, part))
    return pieces


def joined(pieces: Sequence[str]) -> str:
    return "".join("".join(pieces).split())


def shown(search: Search, console: Console) -> str:
    with LiveView(console, PROBLEM.question, PROBLEM) as view:
        for step in search.steps:
            view.step(step)
    view.end(search.result)
    return written(console)


def test_committed_text_is_bright_and_only_grows(search: Search) -> None:
    console, previous = terminal(), ""
    with LiveView(console, PROBLEM.question) as view:
        for step in search.steps:
            view.step(step)
            pieces = frame(written(console))
            bright = joined([text for style, text in pieces if style in ("1", "1;32")])
            assert bright == joined(step.committed_text)
            if step.accepted:
                everything = joined([text for style, text in pieces if style in ("1", "1;32", "2")])
                assert everything.startswith(joined(step.text))
            assert bright.startswith(previous)
            previous = bright
    assert previous == joined(search.result.text) != ""


def test_the_token_that_was_just_changed_is_green(search: Search) -> None:
    console = terminal()
    with LiveView(console, PROBLEM.question) as view:
        for step in search.steps:
            view.step(step)
            if step.kind == "refine" and step.accepted:
                assert [text for style, text in frame(written(console)) if style == "1;32"] == [step.new_token]


def test_a_revised_token_shows_old_and_new_with_ranking_score_and_reward(search: Search) -> None:
    lines = shown(search, terminal()).splitlines()
    refinements = [step for step in search.steps if step.kind == "refine"]
    assert len(refinements) >= 2
    for step in refinements:
        assert step.ranking_score is not None
        assert step.score is not None
        old, new = f"\x1b[9;31m{step.old_token}\x1b[0m", f"\x1b[1;32m{step.new_token}\x1b[0m"
        assert any(
            f"{old} → {new}  ranked by {step.ranking_score:+.2f}" in line
            and f"reward {step.score.value:.2f} · accepted" in line
            for line in lines
        )


def test_in_the_end_the_cursor_is_back_and_the_answer_stands_with_its_verdict(search: Search) -> None:
    output = shown(search, terminal())
    assert output.count(HIDE) >= 1
    assert output.rindex(SHOW) > output.rindex(HIDE)
    end = CODES.sub("", output[output.rindex(SHOW) :])
    assert "refined answer" in end
    assert f"{PROBLEM.answer} · answer correct · draft wrong" in end
    assert "gradient passes" in end


def test_an_error_leaves_the_cursor_shown(search: Search) -> None:
    console = terminal()

    def broken() -> Iterator[Step]:
        yield search.steps[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), LiveView(console, "q") as view:
        any(map(view.step, broken()))
    assert written(console).rindex(SHOW) > written(console).rindex(HIDE)


@pytest.mark.parametrize(("width", "height"), [(40, 12), (20, 5), (40, 6), (8, 4), (5, 3), (1, 1)])
def test_a_small_terminal_is_never_overflown(search: Search, width: int, height: int) -> None:
    """A frame as high as the terminal scrolls when it ends, and its first line stays behind for ever."""
    console = terminal(width, height)
    prose = "word " * 400 + "\n" + "日本語" * 100
    steps = [*search.steps, replace(search.steps[0], committed_text=prose[:900], text=prose)]
    with LiveView(console, PROBLEM.question) as view:
        for step in steps:
            view.step(step)
            drawn = CODES.sub("", written(console).rsplit(ERASE, 1)[-1]).split("\n")
            below = drawn[max((i for i, line in enumerate(drawn) if line.startswith(("✓", "✗"))), default=-1) + 1 :]
            assert all(cell_len(line) <= width for line in below) or width == 1
    heights = [run.count("\x1b[1A") + 1 for run in re.findall(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", written(console))]
    assert heights
    assert max(heights) <= max(height - 1, 1)
    view.end(search.result)


def test_of_a_long_text_the_part_being_changed_is_shown(search: Search) -> None:
    prose = " ".join(f"word{i}" for i in range(1000))
    console = terminal(40, 12)
    with LiveView(console, PROBLEM.question) as view:
        view.step(replace(search.steps[0], committed_text=prose[: prose.index("word500")], text=prose))
        text = "".join(text for _, text in frame(written(console)))
    assert "word499" in text
    assert "word501" in text
    assert "word1 " not in text


def test_in_the_last_line_of_a_narrow_panel_no_word_is_lost(search: Search) -> None:
    end = CODES.sub("", shown(search, terminal(20, 10))).rsplit("refined answer", 1)[-1]
    assert "loglikelihood" in joined(re.findall(r"[a-z]", end))
    assert "…" not in end


def test_no_color_leaves_marks_and_no_colours(search: Search) -> None:
    output = shown(search, terminal(NO_COLOR="1"))
    codes = {code for codes in re.findall(r"\x1b\[([\d;]*)m", output) for code in codes.split(";")}
    assert codes <= {"", "0", "1", "2", "9"}
    assert "9" in codes  # what went is struck through still


def test_questions_and_answers_cannot_drive_the_terminal(search: Search) -> None:
    console = terminal()
    hostile = replace(search.steps[0], text="\x1b[2J\x07\x9b", committed_text="\x1b[2J")
    with LiveView(console, "\x1b]0;title\x07[red]markup[/red]") as view:
        view.step(hostile)
    view.end(replace(search.result, text="\x1b[2J\x07", trace=Trace((hostile,))))
    output = written(console)
    assert "\x1b[2J" not in output
    assert "\x1b]" not in output
    assert "\x07" not in output
    assert "[red]markup[/red]" in output  # shown as it was asked


def test_a_pipe_gets_every_line_when_it_happens_and_no_codes(search: Search) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as file, PlainView(Console(file=file), "q\x1b[0m", PROBLEM) as view:
        assert os.read(reader, 1 << 16).decode() == "question: q\ufffd[0m\n"
        for step in search.steps:
            view.step(step)
            if step.kind != "commit":
                line = os.read(reader, 1 << 16).decode()
                assert line.startswith("✓ " if step.accepted else "✗ ")
                assert line.count("\n") == 1
        view.end(search.result)
        end = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert "\x1b" not in end
    assert "draft:\n  59 - 42 = 17\n" in end
    assert f"answer:\n  {search.result.text.splitlines()[0]}\n" in end
    assert end.endswith(f"expected: {PROBLEM.answer} · answer correct · draft wrong\n")


def test_every_view_is_a_view() -> None:
    for view in (LiveView(terminal(), "q"), PlainView(terminal(), "q"), JsonView("q")):
        assert isinstance(view, View)


class Impatient(PlainView):
    """Presses Ctrl-C at a step."""

    at = 1

    def step(self, step: Step) -> None:
        super().step(step)
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


def test_ctrl_c_ends_the_search_and_shows_the_best_so_far(engine: Engine, search: Search) -> None:
    run: Run = engine.steps([Message("user", PROBLEM.question)], seed=0)
    console = Console(file=StringIO())
    result = run.show(Impatient(console, PROBLEM.question, PROBLEM))
    assert result.finish_reason is FinishReason.INTERRUPTED
    assert result.usage.rollouts == 1
    assert result.text == search.steps[0].text
    assert "ended: interrupted, the best so far is shown" in written(console)
    assert f"answer:\n  {result.text.splitlines()[0]}" in written(console)


def test_a_run_shows_itself_by_what_standard_output_is(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    result = engine.steps(PROBLEM.question, seed=0).show()
    printed = capsys.readouterr().out
    assert printed.startswith(f"question: {PROBLEM.question}\n✓ rollout 1")
    assert printed.count("accepted") == 2
    assert f"answer:\n  {result.text.splitlines()[0]}" in printed


def test_a_notebook_has_one_element_that_grows_into_the_page_of_the_trace(
    engine: Engine, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPython's own part is played: what it displays is kept, each time it is drawn."""
    drawn = list[str]()

    def display(view: NotebookView, *, display_id: bool) -> SimpleNamespace:
        assert display_id
        drawn.append(view._repr_html_())
        return SimpleNamespace(update=lambda view: drawn.append(view._repr_html_()))

    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    result = engine.steps(PROBLEM.question, seed=0).show()
    assert result.text == search.result.text
    assert "Nothing was tried" in drawn[0]
    assert len(drawn) > 4
    assert all(html.endswith("</section>") for html in drawn)
    assert drawn[-1].count("<details") == 3
    assert "Spent" in drawn[-1]
    before, between = Step("token", "a", text="a <b>"), search.steps[0]
    view = NotebookView("x", doing=lambda: Doing("writing", 1, 5, 0.5))
    with view:
        view.step(between)
        view.step(before)
        assert "<pre>a &lt;b&gt;</pre>" in view._repr_html_()
        assert "writing 1 answer: 5 tokens" in view._repr_html_()
    assert "writing" not in view._repr_html_()


def test_json_is_one_ascii_line_whatever_was_asked(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal that is not UTF-8 would put `?` in place of what it lacks."""
    with JsonView("Zoë\u2028🍎 \ud800", PROBLEM) as view:
        view.end(search.result)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert printed.count("\n") == 1
    assert json.loads(printed)["question"] == "Zoë\u2028🍎 \ud800"
