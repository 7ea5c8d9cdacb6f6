"""Three ways to follow a search: for eyes, for pipes, for programs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from nabla_agents.report import words
from nabla_agents.report.diff import Diff
from nabla_agents.report.words import printable
from nabla_agents.tiny import Problem, is_correct
from nabla_agents.types import Doing, FinishReason, Score, Step, Usage

NO_ANSWER = "(no answer yet)"
_CONTEXT = 32  # characters shown before a refined token
_EVIDENCE = 160  # characters shown of what tools say of a step
_INDENT = 4  # columns before the text as it is now


@runtime_checkable
class Outcome(Protocol):
    """What a search found, as far as views tell of it: a `Result` is one."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> Score | None: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def trace(self) -> Sequence[Step]: ...
    @property
    def log_likelihood(self) -> float: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def detail(self) -> str: ...


@runtime_checkable
class View(Protocol):
    """Shows one search: it is entered, gets every step, is left, and gets the result."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def step(self, step: Step) -> None: ...

    def end(self, result: Outcome) -> None: ...


class LiveView:
    """For terminals: what was tried scrolls by, below it stands the text as it is now, its committed part bright."""

    def __init__(
        self,
        console: Console,
        question: str,
        problem: Problem | None = None,
        *,
        doing: Callable[[], Doing | None] = lambda: None,
    ) -> None:
        self._console, self._question, self._problem, self._doing = console, question, problem, doing
        self._spinner = Spinner("dots", style="cyan")
        self._incumbent, self._committed, self._fresh, self._rollouts = "", "", "", 0
        self._usage = Usage()
        self._live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._now)

    def __enter__(self) -> LiveView:
        self._console.print(Padding(Text(printable(self._question), style="bold"), (0, 0, 1, 0)))
        self._live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.stop()

    def step(self, step: Step) -> None:
        self._usage = step.usage
        self._committed = step.committed_text
        if step.accepted:
            self._incumbent = step.text
        if step.kind in ("rollout", "refine"):
            self._rollouts += 1
            self._console.print(described(step, self._rollouts))
        self._fresh = (step.new_token or "") if step.accepted else ""
        self._live.refresh()

    def end(self, result: Outcome) -> None:
        checked = self._problem is None or is_correct(result.text, self._problem)
        style = "yellow" if result.finish_reason is FinishReason.INTERRUPTED else "green" if checked else "red"
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for name, value in facts(result, self._problem):
            rows.add_row(name, value)
        draft = words.draft(result.trace)
        title = "refined answer" if draft not in ("", result.text) else "answer"
        body = Group(changed(draft, result.text), Rule(style="dim"), rows)
        self._console.print(Text(), Panel(body, title=title, border_style=style, padding=(1, 2)), sep="\n")

    def _now(self) -> RenderableType:
        """The incumbent, as much of it as fits: committed, just changed, still open; and what was spent.

        Never higher than the terminal: what rich cannot erase would stay behind for ever.
        """
        done = self._committed if self._incumbent.startswith(self._committed) else ""
        fresh = self._fresh if done.endswith(self._fresh) else ""
        parts = (done.removesuffix(fresh), "bold"), (fresh, "bold green"), (self._incumbent[len(done) :], "dim")
        text = Text.assemble(*((printable(part), style) for part, style in parts))
        width, height = self._console.size
        lines = text.wrap(self._console, max(1, width - _INDENT))
        at = len(text[: len(done)].wrap(self._console, max(1, width - _INDENT))) - 1
        room = min(height // 2, height - 4)  # two empty lines, the cost, and the line on which the cursor stands
        first = max(0, min(at - room // 2, len(lines) - room))
        usage = self._usage
        now = words.doing(self._doing())
        spent = [f"{words.spent(usage)} · {words.computed(usage)}"] if usage.rollouts else []
        cost = Text(f" {' · '.join([*filter(None, [now]), *spent]) or 'first rollout'}", style="dim")
        cost.truncate(max(1, width - 2), overflow="ellipsis")
        self._spinner.text = cost
        shown = Padding(Text("\n").join(lines[first : first + room]), (0, 0, 0, _INDENT))
        return Group(*([Text(), shown, Text()] if self._incumbent and room > 0 else []), self._spinner)


class PlainView:
    """For pipes and files: lines without control codes."""

    def __init__(self, console: Console, question: str, problem: Problem | None = None) -> None:
        self._console, self._question, self._problem = console, question, problem
        self._rollouts = 0

    def __enter__(self) -> PlainView:
        self._print(f"question: {printable(self._question)}")
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def step(self, step: Step) -> None:
        if step.kind in ("rollout", "refine"):
            self._rollouts += 1
            self._print(described(step, self._rollouts).plain)

    def end(self, result: Outcome) -> None:
        draft = words.draft(result.trace)
        if draft not in ("", result.text):
            self._print(f"draft:\n{indented(draft)}")
        self._print(f"answer:\n{indented(result.text)}")
        for name, value in facts(result, self._problem):
            self._print(f"{name}: {value.plain}")

    def _print(self, text: str) -> None:
        """Written at once, so that a reader sees each step when it happens; rich would fold and mark it."""
        self._console.file.write(f"{text}\n")
        self._console.file.flush()


class JsonView:
    """For programs: one JSON object when the search has ended."""

    def __init__(self, question: str, problem: Problem | None = None) -> None:
        self._question, self._problem = question, problem

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def step(self, step: Step) -> None:
        pass

    def end(self, result: Outcome) -> None:
        fields = {"question": self._question, **as_json(result)}
        if self._problem is not None:
            fields |= {"expected": self._problem.answer, "correct": is_correct(result.text, self._problem)}
        print(json.dumps(fields, allow_nan=False))  # in ASCII, which every terminal and pipe passes on whole


def described(step: Step, number: int) -> Text:
    """One line: what was tried, what the direction promised, what it gave, and whether it was kept; where a tool has
    judged, a second one: what it says.
    """
    line = Text.assemble(("✓ ", "green") if step.accepted else ("✗ ", "red"))
    judged = words.judged(step.score)
    if step.kind == "rollout":
        line.append(f"rollout {number}", style="bold")
        line.append(f"  {judged} · {words.likelihood(step.log_likelihood)}", style="dim")
        return line.append_text(_evidence(step.score))
    written = step.new_token if step.accepted else step.old_token
    before = step.committed_text.removesuffix(written or "").rsplit("\n", 1)[-1]
    line.append(printable(before[-_CONTEXT:]))
    line.append(words.token(step.old_token), style="red strike" if step.accepted else "bold")
    line.append(" → ")
    line.append(words.token(step.new_token), style="bold green" if step.accepted else "dim strike")
    line.append(f"  {words.promised(step)}")
    line.append(f" · {judged} · {words.kept(step)}", style="dim")
    return line.append_text(_evidence(step.score))


def _evidence(score: Score | None) -> Text:
    """What tools say, on a line of its own: green where they vouch for the answer."""
    if score is None or not score.judged or score.verified is None or not score.explanation:
        return Text()
    said = shorten(printable(score.explanation), _EVIDENCE, placeholder=" …")
    return Text(f"\n  {said}", style="green" if score.verified else "red")


def facts(result: Outcome, problem: Problem | None) -> list[tuple[str, Text]]:
    """Why a search ended, what its answer is worth, what it cost, and whether it is right where that is known."""
    searched = result.usage.gradient_passes > 0 or any(step.kind == "refine" for step in result.trace)
    why = words.ended(result.finish_reason, result.detail, truncated=result.truncated, searched=searched)
    rows = [("ended", Text(why))]
    if not math.isnan(result.log_likelihood):
        rows.append(("score", Text(f"{words.judged(result.score)} · {words.likelihood(result.log_likelihood)}")))
    if result.score is not None and result.score.judged and result.score.explanation:
        rows.append(("tools", Text(printable(result.score.explanation))))
    rows += [
        ("spent", Text(f"{words.spent(result.usage)} · {result.usage.seconds:.1f} s")),
        ("computed", Text(words.computed(result.usage))),
    ]
    if problem is not None:
        draft, verdict = words.draft(result.trace), Text.assemble(f"{problem.answer} · answer ")
        verdict.append_text(_verdict(result.text, problem))
        if draft not in ("", result.text):
            verdict.append_text(Text.assemble(" · draft ", _verdict(draft, problem)))
        rows.append(("expected", verdict))
    return rows


def changed(before: str, after: str) -> Text:
    """The answer, with what the draft had struck through and what is new in green."""
    before, after = printable(before), printable(after)
    if not after:
        return Text(NO_ANSWER, style="dim")
    if not before or before == after:
        return Text(after)
    diff = Diff.of(before, after)
    if diff.similarity < 0.5:
        return Text.assemble((before, "red strike"), "\n\n", (after, "green"))
    text = Text()
    for old, new in diff.pieces:
        if old == new:
            text.append(new)
        else:
            text.append(old, style="red strike")
            text.append(" " if old and new else "")
            text.append(new, style="bold green")
    return text


def indented(text: str) -> str:
    """A block of text below a heading."""
    return "\n".join(f"  {line}" for line in (printable(text) or NO_ANSWER).split("\n"))


def as_json(value: Any) -> Any:
    """Records, sequences and numbers as JSON has them: NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verdict(text: str, problem: Problem) -> Text:
    return Text("correct", style="bold green") if is_correct(text, problem) else Text("wrong", style="bold red")
