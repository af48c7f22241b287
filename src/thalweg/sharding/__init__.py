"""DTensors: parameters that are sharded over ranks, by FSDP2 or tensor parallelism.

They are known by their mesh, as importing their class takes half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from thalweg.torch_private import local_tensor

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(t: Any) -> bool:
    """Whether ``t`` is a DTensor."""
    return hasattr(t, "device_mesh")


def local(t: Any) -> Tensor:
    """The shard of a DTensor that is here, waited for; any other tensor itself."""
    here = local_tensor(t)
    return cast("Tensor", here.wait() if hasattr(here, "trigger_wait") else here)


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


def placed_as(p: Any, grad: Any) -> Any:
    """A gradient of ``p`` on its shards: of a DTensor that is still to be summed, or split otherwise, the right one."""
    if not (is_sharded(p) and is_sharded(grad) and grad.device_mesh == p.device_mesh):
        return grad
    if grad.placements == p.placements:
        return grad
    return grad.redistribute(p.device_mesh, p.placements)
