"""CommittedText: what a stream of steps adds to the text that was handed out."""

from __future__ import annotations

from nabla_agents.errors import NablaError
from nabla_agents.types import Step


class CommittedText:
    """The text handed out so far, and what each step adds to it."""

    def __init__(self) -> None:
        self.text = ""

    def added_by(self, step: Step) -> str:
        """What this step adds to the committed text; may be empty.

        Raises:
            NablaError: the strategy took back text that it had committed.
        """
        text = step.committed_text
        if not text.startswith(self.text):
            raise NablaError(f"The strategy took back committed text: {self.text!r} became {text!r}.")
        added, self.text = text[len(self.text) :], text
        return added
