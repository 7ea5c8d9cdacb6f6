"""A search in a notebook: one element, drawn anew with each step and while tokens are written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from html import escape
from typing import Any, Final

from nabla_agents.report import words
from nabla_agents.report.html import fragment
from nabla_agents.report.terminal import Outcome
from nabla_agents.types import Doing, Step

_EVERY: Final = 0.5  # seconds between two drawings of what a search is at


def in_notebook() -> bool:
    """Whether the process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


class NotebookView:
    """For notebooks: what has been tried so far, below it what the search is at; in the end the page of the trace."""

    def __init__(self, question: str, *, doing: Callable[[], Doing | None] = lambda: None) -> None:
        self._question, self._doing = question, doing
        self._steps: list[Step] = []
        self._text = ""
        self._handle: Any = None
        self._lock, self._left = threading.Lock(), threading.Event()

    def __enter__(self) -> NotebookView:
        from IPython.display import display  # type: ignore[import-not-found]

        self._handle = display(self, display_id=True)
        threading.Thread(target=self._follow, daemon=True, name="nabla-notebook").start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._left.set()
        self._draw()

    def step(self, step: Step) -> None:
        self._text = step.text if step.kind == "token" else ""
        if step.kind != "token":
            self._steps.append(step)
            self._draw()

    def end(self, result: Outcome) -> None:
        self._steps, self._text = [*result.trace], ""
        self._draw()

    def _repr_html_(self) -> str:
        now = "" if self._left.is_set() else words.doing(self._doing()) or "beginning"
        below = f"<pre>{escape(self._text)}</pre>" * bool(self._text) + f'<p class="dim">{escape(now)}</p>' * bool(now)
        tried = fragment([*self._steps], title="Search", question=self._question)
        return tried.removesuffix("</section>") + below + "</section>"

    def _follow(self) -> None:
        while not self._left.wait(_EVERY):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            self._handle.update(self)
