"""What a model is told of its completion: short plain text, whatever it was made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

MAX_REMARK: Final = 500
"""Characters of one score's `feedback` at most."""
_MAX_QUOTE: Final = 80  # characters of one value in it


def remark(text: str) -> str:
    """The text as `Score.feedback`: the characters that can be read, cut to `MAX_REMARK`."""
    return shortened("".join(islice(readable(text), MAX_REMARK + 1)), MAX_REMARK)


def readable(text: str) -> Iterator[str]:
    """The characters that can be read: no controls and formats but line ends and tabs, no halves of surrogate pairs."""
    return (c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")


def quoted(value: Any) -> str:
    """A value as Python writes it, shortened; control characters are escapes there."""
    return shortened(repr(value))


def shortened(text: str, most: int = _MAX_QUOTE) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
