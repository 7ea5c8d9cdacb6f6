"""Keys and values that grow in place: reading one more token writes one place and copies nothing."""

from __future__ import annotations

import inspect
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
        before, tokens = self.get_seq_length(), key_states.shape[-2]
        keys, values = self._with_room(key_states, value_states, tokens)
        keys[:, :, before : before + tokens] = key_states
        values[:, :, before : before + tokens] = value_states
        self.written(tokens)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def reserve(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The tensors that hold keys and values, with room for this many more tokens. Requires that some are held."""
        assert self.keys is not None
        assert self.values is not None
        return self._with_room(self.keys, self.values, tokens)

    def written(self, tokens: int) -> None:
        """From now on holds that many tokens more, which were written into the room of its tensors."""
        assert self._store is not None
        keys, values = self._store
        after = self.get_seq_length() + tokens
        self.keys, self.values = keys[:, :, :after], values[:, :, :after]

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

    def _with_room(self, like_keys: Tensor, like_values: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """What is stored, in larger tensors where this many tokens more do not fit."""
        store, before = self._in_use, self.get_seq_length()
        after = before + tokens
        if store is None or store[0].shape[2] <= after:  # never quite full, which would be another program
            keys, values = (
                like.new_empty(*like.shape[:2], _room(after), like.shape[3]) for like in (like_keys, like_values)
            )
            if before and self.keys is not None and self.values is not None:
                keys[:, :, :before], values[:, :, :before] = self.keys, self.values
            store = self._store = (keys, values)
        return store


def places(first: int, further: int = 0, *, step: int = 1) -> int:
    """The places that a `GrowingLayer` has once it was given so many tokens at first, and then `step` at a time."""
    held, room = first, _room(first)
    for _ in range(0, further, step):
        held += step
        room = room if held < room else _room(held)
    return room


def _room(held: int) -> int:
    return held + max(_ROOM, held // 4)


def cache_argument(body: Any) -> str:
    """What a model's forward pass calls the cache it is given: `cache` since transformers 5.24, before that and in code
    of a checkpoint's own `past_key_values`.
    """
    return "cache" if "cache" in inspect.signature(type(body).forward).parameters else "past_key_values"


def growing_cache(config: Any) -> DynamicCache:
    """transformers' cache for a model, with layers of full attention that grow in place; others are its own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
