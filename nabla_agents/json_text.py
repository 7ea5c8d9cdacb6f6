"""JSON text that others wrote, read so that whatever comes of it can be looked at, written and sent on."""

from __future__ import annotations

import json
import re
from typing import Any, Final, cast

MOST_DEPTH: Final = 200  # of objects and lists within each other: beyond, comparing or writing them ends the recursion
_HALF_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(text: str | bytes, *, nan: bool = False) -> Any:
    """The value of a JSON text, bytes of UTF-8 included. `nan` lets pass what JSON has not, NaN and infinities.

    Raises:
        ValueError: no JSON, no UTF-8, half a surrogate pair, more than `MOST_DEPTH` levels, numbers of thousands of
            digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        elif not text.isascii():
            text.encode()
        value = json.loads(text) if nan else json.loads(text, parse_constant=_refused)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep") from None
    if text.count("[") + text.count("{") > MOST_DEPTH and too_deep(value):
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def too_deep(value: Any) -> bool:
    """Whether objects and lists are nested more than `MOST_DEPTH` levels."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH + 1):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in inner for each in cast(Any, values) if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _refused(constant: str) -> Any:
    raise ValueError(f"JSON has no {constant}")
