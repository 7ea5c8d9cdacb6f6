"""Compiled passes: one program for every batch, length and number of new tokens, in place of layer after layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, no_type_check

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from nabla_agents.errors import ModelLoadError
from nabla_agents.models.kv_cache import GrowingLayer, cache_argument, growing_cache


def compile_passes(module: PreTrainedModel) -> None:
    """Has `torch.compile` make programs of a model's body for passes without gradient that follow others: decode steps,
    above all. There is one each for a row or more and a token or more; the first is compiled here, the others when
    they are needed. A second call changes nothing.

    Raises:
        ModelLoadError: there is no compiler, or the model cannot be compiled.
    """
    body: Any = module.base_model
    if isinstance(body.forward, _Compiled):
        return
    config = module.config.get_text_config(decoder=True)
    cache = growing_cache(config)
    if not all(isinstance(layer, GrowingLayer) for layer in cache.layers):
        raise ModelLoadError(
            f"{type(module).__name__} has layers whose cache does not grow (a sliding window), and a pass over them is "
            "not one program. Load it without compile=True."
        )
    module.eval().requires_grad_(False)
    name = cache_argument(body)
    body.forward = _Compiled(body.forward, module.get_input_embeddings(), config, name)
    ids = torch.zeros(1, 3, dtype=torch.long, device=module.device)
    positions = torch.tensor([[0, 1, 2]], device=module.device)
    try:
        with torch.no_grad():
            body(input_ids=ids, position_ids=positions, use_cache=True, **{name: cache})
            body(input_ids=ids[:, :1], position_ids=3 + positions[:, :1], use_cache=True, **{name: cache})
    except Exception as e:  # a compiler raises anything
        del body.forward
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelLoadError(
            f"torch.compile fails for {type(module).__name__}: {reason} On a CPU it needs a C++ compiler such as g++. "
            "Load the model without compile=True."
        ) from e


class _Compiled:
    """A body's forward pass, compiled where nothing needs a gradient and the cache holds something already."""

    def __init__(self, forward: Callable[..., Any], embedding: Any, config: Any, cache_name: str) -> None:
        self._forward, self._embedding, self._config, self._cache_name = forward, embedding, config, cache_name
        # torch.compile counts its programs by code object, and gives up beyond a few: each model has its own.
        own = FunctionType(_pass.__code__.replace(), _pass.__globals__)
        self._program: Callable[..., Tensor] = torch.compile(own, dynamic=True)

    def __call__(self, **inputs: Any) -> Any:
        layers: Any = getattr(inputs.get(self._cache_name), "layers", ())
        grown = all(isinstance(layer, GrowingLayer) and layer.get_seq_length() > 0 for layer in layers)
        if torch.is_grad_enabled() or not layers or not grown:
            return self._forward(**inputs)
        cache, rows, tokens = inputs[self._cache_name], *inputs["position_ids"].shape
        before = layers[0].get_seq_length()
        embeddings, mask = inputs.get("inputs_embeds"), inputs.get("attention_mask")
        if embeddings is None:  # ids, or nothing to mask, would be another program
            embeddings = self._embedding(inputs["input_ids"])
        if mask is None:
            mask = torch.ones(rows, before + tokens, dtype=torch.bool, device=embeddings.device)
        # Whether a tensor is a view of another would make another program.
        stores = [(keys.detach(), values.detach()) for keys, values in (layer.reserve(tokens) for layer in layers)]
        states = self._program(
            self._forward, self._config, self._cache_name, before, stores, embeddings, mask, inputs["position_ids"]
        )
        for layer in layers:
            layer.written(tokens)
        return BaseModelOutputWithPast(last_hidden_state=states, **{self._cache_name: cache})


@no_type_check  # a checker around what torch.compile reads would be read too
class _Placed(DynamicLayer):
    """One layer's keys and values within tensors that have room for what is read."""

    def __init__(self, keys: Tensor, values: Tensor, before: int) -> None:
        super().__init__()
        self.is_initialized = True
        self.keys, self.values, self._before = keys, values, before

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        after = self._before + key_states.shape[2]
        self.keys[:, :, self._before : after] = key_states
        self.values[:, :, self._before : after] = value_states
        return self.keys[:, :, :after], self.values[:, :, :after]

    def get_seq_length(self) -> int:
        return self._before


@no_type_check
def _pass(
    forward: Callable[..., Any],
    config: Any,
    cache_name: str,
    before: int,
    stores: Sequence[tuple[Tensor, Tensor]],
    embeddings: Tensor,
    mask: Tensor,
    positions: Tensor,
) -> Tensor:
    """The hidden states of what is read; keys and values are written into what is stored, from `before` on."""
    cache = DynamicCache(config=config)
    cache.layers = [_Placed(keys, values, before) for keys, values in stores]
    return forward(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{cache_name: cache},
    ).last_hidden_state
