"""The cache that grows in place holds what transformers' own holds, whatever is done to it, and copies seldom."""

import random
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from nabla_agents.models.kv_cache import GrowingLayer, cache_argument, growing_cache
from nabla_agents.testing import random_model


def tokens(batch: int, time: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys [batch, 2, time, 4] and values [batch, 2, time, 3]."""
    return torch.randn(batch, 2, time, 4, generator=generator), torch.randn(batch, 2, time, 3, generator=generator)


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_the_copying_layer_holds(seed: int) -> None:
    """Reading, dropping rows, reordering them and cutting the end, in any order."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ours: Any = GrowingLayer()
    theirs: Any = DynamicLayer()
    batch = 5
    for _ in range(60):
        kind = chance.choice(["read", "read", "read", "select", "crop"])
        held = theirs.get_seq_length()
        if kind == "read" or held < 4:
            new = tokens(batch, chance.choice([1, 1, 1, 7, 40]), generator)
            for got, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
                assert torch.equal(got, expected)
        elif kind == "select":
            kept = chance.sample(range(batch), chance.randint(max(1, batch - 1), batch))
            rows = torch.tensor(sorted(kept) if chance.random() < 0.5 else kept)  # in order, or in any other
            batch = len(rows)
            ours.batch_select_indices(rows)
            theirs.batch_select_indices(rows)
        else:
            by = -chance.randint(1, 3)
            ours.crop(by)
            theirs.crop(by)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)


def test_a_thousand_tokens_are_copied_a_few_times() -> None:
    layer: Any = GrowingLayer()
    generator = torch.Generator().manual_seed(0)
    places: set[int] = set()
    for _ in range(1000):
        layer.update(*tokens(2, 1, generator))
        places.add(layer.keys.data_ptr())
    assert len(places) < 14  # by a quarter each time, from 64 on: 64 · 1.25^n > 1000 for n = 13


def test_rows_that_stay_in_their_places_are_not_copied() -> None:
    """Of six rows the second and the last go: the fifth takes the second place, and the tensors stay where they are."""
    layer: Any = GrowingLayer()
    layer.update(*tokens(6, 9, torch.Generator().manual_seed(0)))
    before, place = layer.keys.clone(), layer.keys.data_ptr()
    layer.select([0, 4, 2, 3])
    assert layer.keys.data_ptr() == place
    assert torch.equal(layer.keys, before[[0, 4, 2, 3]])


def test_what_is_held_elsewhere_is_never_written() -> None:
    """Two contexts go on from one prefix, one after a cut: each has its own tokens, and the prefix stays."""
    model = random_model(vocabulary=("a", "b", "c"))
    [(prefix, _)] = model.transformer.prefill([[0, 1, 2, 0]])
    before = [(keys.clone(), values.clone()) for keys, values in prefix.layers]
    for ids in ([1, 1], [2, 2, 2]):
        context, _ = model.transformer.read([[0, 1, 2, 0, *ids]], [prefix], total_tokens=16)
        model.transformer.extend(context, ids=torch.tensor([[1]]))
    for (keys, values), (old_keys, old_values) in zip(prefix.layers, before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)
        assert keys.untyped_storage().nbytes() == keys.nbytes  # no room is kept for what never comes


def test_gradients_reach_what_was_read() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = GrowingLayer()
    layer.update(*tokens(1, 5, generator))
    new_keys, new_values = (t.requires_grad_() for t in tokens(1, 3, generator))
    keys, values = layer.update(new_keys, new_values)
    (2 * keys.sum() + 3 * values.sum()).backward()
    for new, expected in ((new_keys, 2.0), (new_values, 3.0)):
        assert new.grad is not None
        assert torch.equal(new.grad, torch.full_like(new, expected))


def test_layers_with_a_window_are_transformers_own() -> None:
    config = random_model("gemma3", vocabulary=("a", "b"), sliding_window=4, layers=4).transformer.config
    ours, theirs = growing_cache(config).layers, DynamicCache(config=config).layers
    assert [
        type(o) is type(t) or (type(o), type(t)) == (GrowingLayer, DynamicLayer)
        for o, t in zip(ours, theirs, strict=True)
    ]
    assert sum(type(layer) is GrowingLayer for layer in ours) == 2


def test_a_cache_is_passed_by_the_name_that_the_model_has_for_it() -> None:
    class Newer:
        def forward(self, input_ids: object = None, cache: object = None) -> None: ...

    class Older:
        def forward(self, input_ids: object = None, past_key_values: object = None, **rest: object) -> None: ...

    assert (cache_argument(Newer()), cache_argument(Older())) == ("cache", "past_key_values")
