"""Three ways to follow a search: for eyes, for pipes, for programs."""

from __future__ import annotations

import json
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from nabla_agents.live.wording import as_json, changed, computed, described, draft, facts, indented, printable, spent
from nabla_agents.result import Result
from nabla_agents.run import Run
from nabla_agents.tiny import Problem, is_correct
from nabla_agents.types import FinishReason, Step, Usage

_INDENT = 4  # columns before the text as it is now


@runtime_checkable
class View(Protocol):
    """Shows one search: it is entered, gets every step, is left, and gets the result."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def step(self, step: Step) -> None: ...

    def end(self, result: Result) -> None: ...


def watch(run: Run, view: View) -> Result:
    """The result of a run that a view has followed. Ctrl-C ends the run, and what was found is shown."""
    with view:
        try:
            for step in run:
                view.step(step)
        except KeyboardInterrupt:
            run.cancel()
            run.drain()
    result = run.result
    view.end(result)
    return result


class LiveView:
    """For terminals: what was tried scrolls by, below it stands the text as it is now, its committed part bright."""

    def __init__(self, console: Console, question: str, problem: Problem | None = None) -> None:
        self._console, self._question, self._problem = console, question, problem
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

    def end(self, result: Result) -> None:
        checked = self._problem is None or is_correct(result.text, self._problem)
        style = "yellow" if result.finish_reason is FinishReason.INTERRUPTED else "green" if checked else "red"
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for name, value in facts(result, self._problem):
            rows.add_row(name, value)
        title = "refined answer" if draft(result) not in ("", result.text) else "answer"
        body = Group(changed(draft(result), result.text), Rule(style="dim"), rows)
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
        cost = Text(f" {spent(usage)} · {computed(usage)}" if usage.rollouts else " first rollout", style="dim")
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

    def end(self, result: Result) -> None:
        first = draft(result)
        if first not in ("", result.text):
            self._print(f"draft:\n{indented(first)}")
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

    def end(self, result: Result) -> None:
        found = {"question": self._question, **as_json(result)}
        if self._problem is not None:
            found |= {"expected": self._problem.answer, "correct": is_correct(result.text, self._problem)}
        print(json.dumps(found, allow_nan=False))  # in ASCII, which every terminal and pipe passes on whole
