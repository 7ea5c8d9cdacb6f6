"""The Python in a completion, and where a line of it stands."""

from __future__ import annotations

import re
import unicodedata

from nabla_agents.rewards.tools.fences import Fenced, fenced_blocks

_PYTHON = ("python", "py", "python3", "")
# What begins a program that stands in prose without a fence; it is not parsed, which could crash the host.
_BEGINS = re.compile(
    r"^(?:(?:async +)?def +\w|class +\w|import +\w|from +\S+ +import\b|@\w|raise\b|try:"
    r"|(?:if|while|with|for \w+ in) .*:[ \t]*$"
    r"|[A-Za-z_][\w.]*+[ \t]*+(?:=|\(.*\)[ \t]*$))",
    re.MULTILINE,
)


def python_code(text: str, entry: str | None = None) -> Fenced | None:
    """The last fenced block of Python, of those that define `entry` if some do; without any fence, the text from its
    first line on that looks like code. None where a text has fences, but no Python between them, or nothing at all.
    """
    blocks = fenced_blocks(text)
    if not blocks:
        begins = _BEGINS.search(text)
        start = begins.start() if begins else 0
        return Fenced(text[start:], start, "") if text.strip() else None
    python = [b for b in blocks if b.language in _PYTHON and b.text.strip()]
    if entry is not None:
        name = re.escape(_read(entry))
        # Within one line, and possessive: linear in the text, blank lines included.
        defines = re.compile(
            rf"^[ \t]*+(?:async[ \t]++)?(?:def|class)[ \t]++{name}\b|^{name}[ \t]*+(?::[^\n=]*+)?=", re.MULTILINE
        )
        python = [b for b in python if defines.search(_read(b.text))] or python
    return python[-1] if python else None


def _read(source: str) -> str:
    """As Python reads names: full-width letters, say, are the plain ones."""
    return source if source.isascii() else unicodedata.normalize("NFKC", source)


def line_span(code: Fenced, line: int | None) -> tuple[int, int] | None:
    """Characters of the completion that a line of the code takes, without indentation; None where it has no such."""
    lines = code.text.split("\n")
    if line is None or not 1 <= line <= len(lines) or not lines[line - 1].strip():
        return None
    start = code.start + sum(len(text) + 1 for text in lines[: line - 1])
    written = lines[line - 1]
    return start + len(written) - len(written.lstrip()), start + len(written.rstrip())
