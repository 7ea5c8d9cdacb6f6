"""Texts of a model as HTML: what changed, what the gradient says of each token, what a tool found wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Final

from nabla_agents.types import Span, TokenGain

_STRONG: Final = 5.0  # nats of predicted gain at which a token's colour is full
_WORDS: Final = re.compile(r"\d+|[^\W\d]+|\s|[^\w\s]|_")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
_MOST_WORDS: Final = 5_000  # beyond which texts are compared line by line: the time grows with the square


def changed(old: str, new: str) -> tuple[str, str]:
    """Both texts, with the words marked that only one of them has."""
    pieces = _WORDS if max(len(old), len(new)) < _MOST_WORDS else _LINES
    before, after = pieces.findall(old), pieces.findall(new)
    left, right = list[str](), list[str]()
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        left.append(_marked("".join(before[i:j]), "" if kind == "equal" else "del"))
        right.append(_marked("".join(after[k:m]), "" if kind == "equal" else "ins"))
    return "".join(left), "".join(right)


def heat(text: str, gains: Sequence[TokenGain]) -> str:
    """A text whose tokens are the warmer, the more the objective is predicted to gain by their best alternative."""
    parts, at = list[str](), 0
    for gain in sorted(gains, key=lambda g: g.start):
        if gain.start < at or gain.end > len(text):
            continue
        strength = min(1.0, max(0.0, gain.predicted_gain / _STRONG))
        hint = f"{visible(gain.new)} instead: predicted gain {number(gain.predicted_gain)} nats"
        parts.append(escape(text[at : gain.start]))
        parts.append(
            f'<span title="{escape(hint)}" style="background:rgba(var(--hot),{0.75 * strength:.2f})">'
            f"{escape(text[gain.start : gain.end])}</span>"
        )
        at = gain.end
    return "".join(parts) + escape(text[at:])


def judged(text: str, spans: Sequence[Span]) -> str:
    """A text with what a tool found wrong underlined; its reason is the hint."""
    parts, at = list[str](), 0
    for span in sorted((s for s in spans if s.value < 0), key=lambda s: s.start):
        if span.start < at or span.end > len(text) or span.start == span.end:
            continue
        hint = span.explanation + (f" (expected {span.expected})" if span.expected is not None else "")
        parts += [escape(text[at : span.start]), f'<u title="{escape(hint)}">{escape(text[span.start : span.end])}</u>']
        at = span.end
    return "".join(parts) + escape(text[at:])


def token(text: str | None) -> str:
    """A token on one line, its spaces and line ends made visible."""
    return f"<code>{escape(visible(text or ''))}</code>"


def visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def number(value: int | float) -> str:
    """Four digits; whole numbers in full."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e7 else f"{value:.4g}"


def _marked(text: str, tag: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>" if tag and text else escape(text)
