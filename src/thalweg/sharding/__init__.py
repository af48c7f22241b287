"""DTensors: parameters that are sharded over ranks, by FSDP2 or tensor parallelism.

They are known by their mesh, as importing their class takes half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from thalweg.torch_private import shard_shape_and_offset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether ``t`` is a DTensor."""
    return hasattr(t, "device_mesh")


def local(t: Any) -> Tensor:
    """The shard of a DTensor that is here; any other tensor itself."""
    return cast("Tensor", t.to_local() if is_sharded(t) else t)


def whole(t: Any) -> Tensor:
    """All of a DTensor; any other tensor itself."""
    return cast("Tensor", t.full_tensor() if is_sharded(t) else t)


def placement(t: Any) -> tuple[Any, Any] | None:
    """The mesh of a DTensor and its placements on it; None for any other tensor."""
    return (t.device_mesh, t.placements) if is_sharded(t) else None


def sharded_like(here: Tensor, x: Any) -> Tensor:
    """What is here of a tensor that is sharded as ``x`` is, as one; ``here`` itself if that is not sharded."""
    if not is_sharded(x):
        return here
    from torch.distributed.tensor import DTensor

    found: Tensor = DTensor.from_local(
        here, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )
    return found.to(x.device)  # where that is not the mesh's, in CPU offloading


def positions(x: Any) -> Tensor:
    """The number of each element of a DTensor in the whole, in the shape of what is here of it."""
    local_shape, offset = shard_shape_and_offset(x)
    index = torch.zeros((), dtype=torch.int64, device=x.device)
    for size, here, first in zip(x.shape, local_shape, offset, strict=True):
        index = index.unsqueeze(-1) * size + torch.arange(first, first + here, device=x.device)
    return index


def all_ranks_agree(verdict: Tensor, tensors: Iterable[Any]) -> Tensor:
    """Whether a 0-d ``verdict`` holds on all ranks that have a shard of one of the tensors; itself if none is sharded.

    Verdicts are reduced, and no magnitudes: a maximum over ranks may lose a NaN.
    """
    meshes = dict.fromkeys(t.device_mesh for t in tensors if is_sharded(t))
    if not meshes:
        return verdict
    reduced = verdict.to(torch.int32)
    for mesh in meshes:
        for group in mesh.get_all_groups():
            torch.distributed.all_reduce(reduced, torch.distributed.ReduceOp.MIN, group=group)
    return reduced.bool()
