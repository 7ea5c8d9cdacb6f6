"""Quantised layers: whether a gradient goes through them, tried on each kind of them before a model is used.

Many formats have a forward pass only, and not all of them say so: what comes out then is the gradient of the rest of
the model, which is of no use and looks like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nabla_agents.errors import ModelLoadError

_rounding = logging.getLogger("bitsandbytes.autograd._functions")
_logged = set[str]()
_AGREE = (0.75, 1.33)  # of the change of a layer's output to what its gradient says; activations may be rounded, too


def prepare(module: nn.Module) -> None:
    """Keeps 4-bit layers of bitsandbytes from packing their weights anew at the first pass without gradient, as they
    do on CPUs with AVX512-BF16: their backward pass cannot read those. Its 8-bit layers say only once that they round.
    """
    _rounding.addFilter(_once)
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _once(record: logging.LogRecord) -> bool:
    """Whether this was not said before."""
    first = record.getMessage() not in _logged
    _logged.add(record.getMessage())
    return first


def check_gradient(module: nn.Module, name: str) -> None:
    """Tries one quantised layer of each kind and size: its gradient against what a step along it changes, which is the
    same for a linear layer, whatever the step. Costs a few passes over each layer that is tried. Layers whose weights
    are elsewhere (offloaded) are not.

    Raises:
        ModelLoadError: no gradient goes through a layer, or a wrong one.
    """
    for layer in _one_of_each(module):
        kind = type(layer).__name__
        if type(layer) is nn.Linear:  # torch's own, with a weight of another kind
            kind += f" ({type(layer.weight).__name__})"
        try:
            predicted, changed = _changes(layer, module.dtype)  # type: ignore[arg-type]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as e:
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise _useless(name, f"{kind}: {reason.rstrip('.')}") from e
        if not _AGREE[0] * predicted <= changed <= _AGREE[1] * predicted:
            raise _useless(name, f"{kind}: a step along it changes the output by {changed:.3g}, not {predicted:.3g}")


def _one_of_each(module: nn.Module) -> Iterator[Any]:
    seen = set[tuple[Any, ...]]()
    for layer in module.modules():
        sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        key = type(layer), type(getattr(layer, "weight", None)), *sizes
        if None not in sizes and key not in seen and not _is_plain(layer) and _device(layer).type != "meta":
            seen.add(key)
            yield layer


def _is_plain(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return type(layer) is nn.Linear and type(weight) is nn.Parameter and weight.is_floating_point()


def _device(layer: nn.Module) -> torch.device:
    return next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("meta"))


def _changes(layer: Any, dtype: torch.dtype) -> tuple[float, float]:
    """By how much a step along the gradient changes the output: as the gradient says, and in fact."""
    device, generator = _device(layer), torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    x = normal(4, layer.in_features)
    with torch.no_grad():  # a search writes first: layers that prepare themselves for that do it now
        layer(x[:1])
        layer(x[:1])
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        y = layer(leaf)
        along = normal(*y.shape)
        (gradient,) = torch.autograd.grad(y, leaf, along.to(y.dtype))
    step = gradient * (x.norm() / gradient.norm().clamp_min(1e-30))
    with torch.no_grad():
        difference = (layer(x + step).double() - layer(x - step).double()) / 2
    return float((gradient.double() * step.double()).sum()), float((difference * along.double()).sum())


def _useless(name: str, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"No gradient goes through the quantised layers of {name!r} ({what}). Choose a format whose layers have a "
        "backward pass: bitsandbytes, torchao's Int8WeightOnlyConfig, GPTQ or AWQ by GPTQModel's backends 'torch' and "
        "'triton' (Marlin, ExLlama, Machete and torchao's int4 have none), or a GGUF file, which is unpacked. Searches "
        "without a backward pass, as best-of-n or with embedding_terms=False, do without: check_gradient=False."
    )
