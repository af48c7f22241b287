"""DTensors: parameters that are sharded over ranks, by FSDP2 or tensor parallelism.

They are known by their mesh, as importing their class takes half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import Parameter

from thalweg import torch_private
from thalweg.torch_private import local_tensor

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN = frozenset({torch.Tensor, Parameter})


def is_sharded(t: Any) -> bool:
    """Whether ``t`` is a DTensor."""
    return hasattr(t, "device_mesh")


def local(t: Any) -> Tensor:
    """The shard of a DTensor that is here, waited for; any other tensor itself."""
    here: Any = t if type(t) in _PLAIN else local_tensor(t)
    return cast("Tensor", here.wait()) if type(here) not in _PLAIN and hasattr(here, "trigger_wait") else here


def whole(t: Any) -> Tensor:
    """All of a DTensor; any other tensor itself."""
    return cast("Tensor", t.full_tensor() if is_sharded(t) else t)


def placement(t: Any) -> tuple[Any, Any] | None:
    """The mesh of a DTensor and its placements on it; None for any other tensor."""
    return (t.device_mesh, t.placements) if is_sharded(t) else None


def sharded_like(here: Tensor, x: Any) -> Tensor:
    """What is here of a tensor that is sharded as ``x`` is, as one; ``here`` itself if that is not sharded."""
    return torch_private.sharded_like(here, x) if is_sharded(x) else here


def zeros_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros in the shape, layout and shards of ``x``, which DTensors take long to make themselves."""
    return sharded_like(torch.zeros_like(local(x), dtype=dtype, memory_format=torch.preserve_format), x)


def placed_as(p: Any, grad: Any) -> Any:
    """A gradient of ``p`` on its shards: of a DTensor that is still to be summed, or split otherwise, the right one."""
    if not (is_sharded(p) and is_sharded(grad) and grad.device_mesh == p.device_mesh):
        return grad
    if grad.placements == p.placements:
        return grad
    return grad.redistribute(p.device_mesh, p.placements)
