"""Keys and values that grow in place: reading one more token writes one place and copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # least places ahead; a quarter of what is held where that is more


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [batch, heads, time, head_dim], as views of tensors with room for more.

    transformers' own layer copies everything with each token read: that is most of a decode step of many rows.
    """

    _store: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            self._store = None  # a graph may hold what is written now
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        store = self._in_use
        if store is None or store[0].shape[2] < after:
            store = self._store = self._larger(key_states, value_states, before, after)
        keys, values = store
        keys[:, :, before:after] = key_states
        values[:, :, before:after] = value_states
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices.tolist())

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, and the room ahead. Where rows move only into places of rows that go, nothing else is
        copied.
        """
        store, held, count = self._in_use, self.get_seq_length(), len(rows)
        if store is None:
            super().batch_select_indices(torch.tensor(rows, device=None if self.keys is None else self.keys.device))
            return
        moved = [(to, place) for to, place in enumerate(rows) if to != place]
        if all(place >= count for _, place in moved):
            to, place = [to for to, _ in moved], [place for _, place in moved]
            for part in store if moved else ():
                part[to, :, :held] = part[place, :, :held]
            store = (store[0][:count], store[1][:count])
        else:
            store = (store[0][list(rows)], store[1][list(rows)])
        self._store = store
        self.keys, self.values = store[0][:, :, :held], store[1][:, :, :held]

    @property
    def _in_use(self) -> tuple[Tensor, Tensor] | None:
        """What is stored, while `keys` is a view of it: whoever reorders rows puts another tensor in its place."""
        store = self._store
        if store is None or not self.is_initialized or self.keys is None:
            return None
        same = self.keys.data_ptr() == store[0].data_ptr() and self.keys.shape[0] == store[0].shape[0]
        return store if same else None

    def _larger(self, key_states: Tensor, value_states: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
        """New tensors with room beyond `after` places, of which the first `before` are those held."""
        room = after + max(_ROOM, after // 4)
        keys, values = (new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (key_states, value_states))
        if before and self.keys is not None and self.values is not None:
            keys[:, :, :before], values[:, :, :before] = self.keys, self.values
        return keys, values


def growing_cache(config: Any) -> DynamicCache:
    """transformers' cache for a model, with layers of full attention that grow in place; others are its own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
