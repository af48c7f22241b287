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


def is_misplaced(p: Any, grad: Any) -> bool:
    """Whether a gradient is on the mesh of its parameter, not on its shards: still to be summed, or cut otherwise."""
    return is_sharded(grad) and is_sharded(p) and grad.placements != p.placements and grad.device_mesh == p.device_mesh


def is_whole(x: Any) -> bool:
    """Whether each rank of its mesh has all of a DTensor."""
    return all(placement.is_replicate() for placement in x.placements)


def placed_as(p: Any, grad: Any) -> Tensor:
    """A gradient that :func:`is_misplaced` on the shards of ``p``: if not :func:`is_whole`, a collective."""
    return cast("Tensor", grad.redistribute(p.device_mesh, p.placements))
