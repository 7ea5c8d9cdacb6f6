"""The JSON in a completion, and where its values stand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from nabla_agents.rewards.tools.fences import fenced_blocks

_SPACE = re.compile(r"[ \t\n\r]*+")


def json_body(text: str) -> tuple[str, int]:
    """The JSON text, and where it starts."""
    if text.lstrip().startswith(("{", "[", '"')):
        return text, 0
    blocks = fenced_blocks(text)
    block = next((b for b in reversed(blocks) if b.language.startswith("json")), blocks[-1] if blocks else None)
    return (text, 0) if block is None else (block.text, block.start)


def located(body: str, path: Sequence[str | int]) -> tuple[int, int]:
    """Characters of the value at a path of keys and indices; a key that occurs twice counts where it is last."""
    decoder = json.JSONDecoder()
    start = _skip(body, 0)
    for step in path:
        place, at = start, _skip(body, start + 1)
        for index in range(len(body)):
            key: str | int = index
            if body[start] == "{":
                key, at = decoder.raw_decode(body, at)
                at = _skip(body, _skip(body, at) + 1)
            if key == step:
                place = at
            _, at = decoder.raw_decode(body, at)
            at = _skip(body, at)
            if body[at] in "]}":
                break
            at = _skip(body, at + 1)
        start = place
    return start, decoder.raw_decode(body, start)[1]


def _skip(body: str, at: int) -> int:
    match = _SPACE.match(body, at)
    return at if match is None else match.end()
