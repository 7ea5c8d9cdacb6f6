"""Dialects: how model families write tool calls and reasoning, declared once for prompts, grammars and parsers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Dialect:
    """How one family writes tool calls and reasoning.

    Args:
        name: by which a grammar refers to it.
        mark: a text in the family's chat template that no other family's has.
        begin: the marker before a call, empty where a call stands alone.
        end: the marker after it, empty where the end of the completion is.
        several: calls after each other, each with its markers; in one JSON list behind one marker; or one alone.
        arguments: the key of a call's arguments.
        call_id: characters of a call's name, where the template insists on a number of them.
        thought: the markers around reasoning.
    """

    name: str
    mark: str
    begin: str
    end: str = ""
    several: Literal["repeated", "listed", "never"] = "repeated"
    arguments: str = "arguments"
    call_id: int | None = None
    thought: tuple[str, str] = ("<think>", "</think>")

    @staticmethod
    def of(template: str | None) -> Dialect:
        """The dialect of a chat template; that of Hermes and Qwen for one that is none of the known, or has no tools,
        which are then written into the text so.
        """
        return next((dialect for dialect in DIALECTS.values() if dialect.mark in (template or "")), HERMES)


HERMES: Final = Dialect("hermes", "<tool_call>", "<tool_call>", "</tool_call>")
"""Hermes, Qwen 2 and later, SmolLM and others: `<tool_call>` JSON `</tool_call>`, one after the other."""
LLAMA3: Final = Dialect("llama3", '"parameters": dictionary of', "", several="never", arguments="parameters")
"""Llama 3.1 to 3.3: one bare JSON object with `parameters`."""
MISTRAL: Final = Dialect(
    "mistral", "[TOOL_CALLS]", "[TOOL_CALLS]", several="listed", call_id=9, thought=("[THINK]", "[/THINK]")
)
"""Mistral 7B v0.3, Nemo, Small and others: `[TOOL_CALLS]` and a JSON list."""

DIALECTS: Final = {dialect.name: dialect for dialect in (LLAMA3, MISTRAL, HERMES)}
