"""Activation checkpointing: a layer keeps its input only, and computes the rest again when the gradient needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from nabla_agents.errors import ConfigurationError


def checkpoint_layers(module: PreTrainedModel) -> None:
    """Has every layer of a model forget its activations: a gradient pass then holds those of one layer at a time, and
    costs one forward more. Passes without gradient stay as they are. A second call changes nothing.

    transformers' own switch drops the key/value cache, which holds the prompt here; this one keeps it.

    Raises:
        ConfigurationError: transformers names no layers of this architecture that could be checkpointed.
    """
    layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigurationError(
            f"{type(module).__name__} has no layers that can be checkpointed; load it without activation_checkpointing."
        )
    for layer in layers:
        if not isinstance(layer.forward, _Checkpointed):
            layer.forward = _Checkpointed(layer)


def is_checkpointed(module: PreTrainedModel) -> bool:
    """Whether `checkpoint_layers` was called on a model."""
    return any(isinstance(vars(m).get("forward"), _Checkpointed) for m in module.modules())


class _Checkpointed:
    """A layer's forward pass that is run anew in the backward pass, from the cache as it was."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._forward: Callable[..., Any] = layer.forward  # bound, so that a copy of the model has its own
        self._index = next((i for m in layer.modules() if isinstance(i := getattr(m, "layer_idx", None), int)), None)

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and hidden_states.requires_grad):
            return self._forward(hidden_states, *args, **kwargs)
        restore = self._restoring(
            kwargs.get("cache", kwargs.get("past_key_values"))
        )  # its name since transformers 5.24

        def run(hidden: torch.Tensor) -> Any:
            restore()
            return self._forward(hidden, *args, **kwargs)

        return checkpoint(run, hidden_states, use_reentrant=False, preserve_rng_state=False)

    def _restoring(self, cache: Any) -> Callable[[], None]:
        """Takes a cache back to what it holds now: reading the same tokens twice would put them in twice.

        Layers of a cache never write into their tensors, they replace them.
        """
        if cache is None or self._index is None or self._index >= len(cache.layers):
            return lambda: None
        state = vars(cache.layers[self._index])
        now = dict(state)

        def restore() -> None:
            state.clear()
            state.update(now)

        return restore
