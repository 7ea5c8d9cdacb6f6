"""Fenced blocks (Markdown's three backticks) of a completion, with their places in it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

# One line each, and a line begins no other: linear in the text. An unclosed block ends with the text. Backticks that
# are closed in their line are no fence; and as in CommonMark none is that stands four columns further in than what it
# would close, such as one in a docstring.
_FENCE = re.compile(r"^([ \t]{0,8})(`{3,}+(?![^\n]*`)|~{3,})[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)


@dataclass(frozen=True)
class Fenced:
    """The text between two fences, and where it starts in the completion; `language` is lower case, or empty."""

    text: str
    start: int
    language: str

    @property
    def flush(self) -> str:
        """The text, line by line, without an indentation that all lines share: a block may stand in a list."""
        return textwrap.dedent(self.text)


def fenced_blocks(text: str) -> list[Fenced]:
    """All blocks in order; of a block that is marked as Markdown, those within it, one level deep."""
    return [inner for block in _blocks(text) for inner in _within(block)]


def _within(block: Fenced) -> list[Fenced]:
    inner = _blocks(block.text) if block.language in ("markdown", "md") else []
    return [Fenced(b.text, block.start + b.start, b.language) for b in inner] or [block]


def _blocks(text: str) -> list[Fenced]:
    blocks: list[Fenced] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[2].startswith(opened[2]) and not fence[3] and len(fence[1]) < len(opened[1]) + 4:
            blocks.append(_between(text, opened, fence.start()))
            opened = None
    if opened is not None:
        blocks.append(_between(text, opened, len(text)))
    return blocks


def _between(text: str, opened: re.Match[str], end: int) -> Fenced:
    start = min(opened.end() + 1, end)  # after the fence's line break
    return Fenced(text[start:end], start, opened[3].lower())
