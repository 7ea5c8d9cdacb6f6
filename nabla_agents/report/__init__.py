"""What a search did, for people: one wording of steps and costs, as an HTML page, on a terminal, and in plain lines."""

from collections.abc import Callable

from rich.console import Console

from nabla_agents.report.html import fragment, page
from nabla_agents.report.notebook import NotebookView, in_notebook
from nabla_agents.report.terminal import JsonView, LiveView, PlainView, View
from nabla_agents.tiny import Problem
from nabla_agents.types import Doing

__all__ = ["JsonView", "LiveView", "NotebookView", "PlainView", "View", "fragment", "page", "view_of"]


def view_of(
    question: str,
    problem: Problem | None = None,
    *,
    doing: Callable[[], Doing | None],
    console: Console | None = None,
) -> View:
    """The view that suits where it is looked at: a notebook, a terminal, or what a pipe or a file gets."""
    if console is None and in_notebook():
        return NotebookView(question, doing=doing)
    console = console or Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, question, problem, doing=doing)
    return PlainView(console, question, problem)
