"""Keys and values of prompts, each kept for as long as its prompt is in use."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from nabla_agents.types import Prompt


@dataclass(frozen=True, eq=False)
class PrefixCache:
    """Keys and values of known tokens [1, heads, time, head_dim], per layer; computed once, shared, never written."""

    ids: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]


class PrefixCaches:
    """What a model has read of prompts, by the `Prompt` object itself: an equal one of another request is another.

    So what a request costs does not depend on what was asked before it. Threads may share it.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.ref[Prompt], PrefixCache]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, prompt: Prompt, ids: Sequence[int]) -> PrefixCache | None:
        """Keys and values of these ids, if they are what was kept for the prompt."""
        kept = self._held.get(id(prompt))
        return kept[1] if kept is not None and kept[0]() is prompt and kept[1].ids == tuple(ids) else None

    def keep(self, prompt: Prompt, cache: PrefixCache) -> None:
        """In place of what was kept for this prompt, if anything was."""
        key, held = id(prompt), self._held
        held[key] = weakref.ref(prompt, partial(_forget, held, key)), cache  # a lambda's globals may be gone at exit


def _forget(held: dict[int, tuple[weakref.ref[Prompt], PrefixCache]], key: int, gone: weakref.ref[Prompt]) -> None:
    """Drops an entry, unless another prompt has its place by now."""
    if (kept := held.get(key)) is not None and kept[0] is gone:
        del held[key]
