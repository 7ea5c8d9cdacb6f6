"""A second device where there is none: its tensors have values in memory, and no operation takes both devices' tensors.

They say that they are on `meta`, a device that torch knows everywhere. Values and strides are those of a CPU, and so
are results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from nabla_agents.scheduling import scheduler

DEVICE = torch.device("meta")
_MOVES = ("aten::_to_copy", "aten::copy_")

_on_cpu = torch.tensor


class Elsewhere(Tensor):
    """A tensor of the second device; `here` are its values, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def tolist(self) -> Any:
        return self.here.tolist()

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_indices(index), value)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(operation, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within, the calling thread has the device that is given, and so have the schedulers' threads."""
    work = scheduler.Scheduler._work

    def there(self: scheduler.Scheduler) -> None:
        with _Here():
            work(self)

    with (
        _Here(),
        patch.object(torch, "tensor", _tensor),
        patch.object(scheduler.Scheduler, "_work", there),
        patch.dict(scheduler._schedulers, clear=True),
    ):
        yield DEVICE
        for one in scheduler._schedulers.values():
            one.close()


def move(module: nn.Module) -> None:
    """A module's weights, to the second device. In place, because a `Parameter` would be without their values."""
    for part in module.modules():
        held: Any
        for held in (part._parameters, part._buffers):
            held.update({name: Elsewhere(t.detach()) for name, t in held.items() if t is not None})


class _Here(TorchDispatchMode):
    """Makes tensors of the second device where they are asked for."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _operate(operation, args, kwargs or {})


def _operate(operation: Any, args: Any, kwargs: Any) -> Any:
    """An operation, on the values of what it is given; its results are on the same device.

    Raises:
        RuntimeError: it is given tensors of both devices, other than numbers.
    """
    given, shape = pytree.tree_flatten((args, kwargs))
    tensors = [x for x in given if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() > 0]
    if there and here and operation._schema.name not in _MOVES:
        raise RuntimeError(f"{operation} got tensors on {[str(x.device) for x in tensors]}; expected one device.")
    inner = [_without_device(x) for x in given]
    inner_args, inner_kwargs = pytree.tree_unflatten(inner, shape)
    results = operation(*inner_args, **inner_kwargs)
    device = kwargs.get("device")
    if device != DEVICE and (device is not None or not there):
        return results
    known = {id(x.here): x for x in there}  # what was changed in place
    return pytree.tree_map_only(Tensor, lambda y: known[id(y)] if id(y) in known else Elsewhere(y), results)


def _without_device(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.here if isinstance(x, Elsewhere) else x


def _indices(index: Any) -> Any:
    """Lists as tensors of the second device: torch cannot make those on its own."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return _tensor(index, dtype=torch.long, device=DEVICE) if isinstance(index, list) else index


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    return _on_cpu(data, **options) if device is None else _on_cpu(data, **options).to(device)
