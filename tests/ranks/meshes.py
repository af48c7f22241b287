"""How parameters are spread over ranks, and the cut that each rank has of a whole tensor, made without a collective."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Shapes = dict[str, tuple[int, ...]]
SMALL: Shapes = {
    "weight": (5, 4),  # rows that no number of ranks divides
    "square": (4, 4),
    "column": (6, 2),  # fewer columns than ranks
    "row": (1, 6),  # fewer rows than ranks
    "bias": (3,),
    "scalar": (),
    "frozen": (2, 3),
    "experts": (3, 4, 2),  # layers that are stacked, each with a norm of its own
}
WIDE: Shapes = {
    "weight": (16, 512),
    "square": (18, 256),  # blocks of 256 numbers are whole rows, of which some ranks have fewer
    "column": (24, 192),  # rows of these end within blocks
    "row": (1, 8192),
    "bias": (64,),  # too few numbers for 8 bits
    "scalar": (),
    "frozen": (2, 3),
    "experts": (4, 8, 256),
}
FROZEN, STACKED = "frozen", "experts"


class Spread(NamedTuple):
    """A mesh and the placements of a parameter on it."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]


Layout = dict[str, Spread | None]
"""How each parameter is spread; None for one that every rank has whole, as a plain tensor."""


@functools.cache
def mesh(*axes: tuple[str, int]) -> DeviceMesh:
    """The same one every time, as each has process groups of its own."""
    names, sizes = zip(*axes, strict=True)
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


@functools.cache
def part_of_mesh(name: str, *axes: tuple[str, int]) -> DeviceMesh:
    return mesh(*axes)[name]


def ddp() -> Layout:
    return dict.fromkeys(SMALL)


def fsdp() -> Layout:
    on = mesh(("fsdp", dist.get_world_size()))
    return {name: Spread(on, (Shard(0) if shape else Replicate(),)) for name, shape in SMALL.items()}


def hsdp() -> Layout:
    on = mesh(("replicas", 2), ("shards", dist.get_world_size() // 2))
    return {name: Spread(on, (Replicate(), Shard(0) if shape else Replicate())) for name, shape in SMALL.items()}


def tensor_parallel() -> Layout:
    """Rows, columns, and what is left plain, as norms are."""
    on = mesh(("tp", dist.get_world_size()))
    rows, columns = Spread(on, (Shard(0),)), Spread(on, (Shard(1),))
    return {**ddp(), "weight": rows, "bias": rows, "square": columns, "column": columns, STACKED: columns}


def fsdp_by_tensor_parallel() -> Layout:
    """As ``fully_shard`` makes them after ``parallelize_module``: rows are cut twice, for tensor parallelism first."""
    count = dist.get_world_size() // 2
    on = mesh(("dp", 2), ("tp", count))
    rows = Spread(on, (_StridedShard(0, split_factor=count), Shard(0)))
    columns, whole = Spread(on, (Shard(0), Shard(1))), Spread(on, (Shard(0), Replicate()))
    spread = {"weight": rows, "bias": rows, "square": columns, "column": columns, STACKED: columns}
    return {name: spread.get(name, whole if shape else None) for name, shape in SMALL.items()}


def experts_on_their_own_mesh() -> Layout:
    """Of four ranks every two have the same experts, of which the experts' mesh knows nothing."""
    size = dist.get_world_size()
    on = part_of_mesh("ep", ("edp", size // 2), ("ep", 2)) if size > 2 else mesh(("ep", size))
    return {**fsdp(), STACKED: Spread(on, (Shard(0),))}


def experts_on_two_axes() -> Layout:
    """As ``fully_shard`` makes them of experts that are spread over ranks already."""
    count = dist.get_world_size() // 2
    on = mesh(("efsdp", 2), ("ep", count))
    return {**fsdp(), STACKED: Spread(on, (_StridedShard(0, split_factor=count), Shard(0)))}


def experts_cut_within() -> Layout:
    """As where there are fewer experts than ranks: each is cut too."""
    on = mesh(("efsdp", dist.get_world_size() // 2), ("ep", 2))
    return {**fsdp(), STACKED: Spread(on, (Shard(1), Shard(0)))}


def beside_plain() -> Layout:
    return {name: spread if name in ("weight", "row", STACKED) else None for name, spread in fsdp().items()}


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "DDP": ddp,
    "FSDP2": fsdp,
    "HSDP": hsdp,
    "tensor parallel": tensor_parallel,
    "FSDP2 x TP": fsdp_by_tensor_parallel,
    "experts on their own mesh": experts_on_their_own_mesh,
    "experts on two axes": experts_on_two_axes,
    "experts cut within": experts_cut_within,
    "DTensor beside plain": beside_plain,
}
WITH_PLAIN = ("tensor parallel", "FSDP2 x TP", "DTensor beside plain")


def cut(whole: Tensor, spread: Spread | None, at: Sequence[int] | None = None) -> Tensor:
    """What a rank has of a tensor: this one, or the one at these coordinates of the mesh. It shares memory."""
    if spread is None:
        return whole
    at = spread.mesh.get_coordinate() if at is None else at
    axes = sorted(range(spread.mesh.ndim), key=lambda axis: isinstance(spread.placements[axis], _StridedShard))
    for axis in axes:  # strided ones cut what those after them have left
        placement = spread.placements[axis]
        if not isinstance(placement, Replicate):
            parts = whole.chunk(spread.mesh.size(axis), placement.dim)
            nothing = whole.narrow(placement.dim, 0, 0)
            whole = parts[at[axis]] if at[axis] < len(parts) else nothing
    return whole


def shards(spread: Spread | None) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The coordinates of every rank of the mesh, with those of the axes over which there is a cut: its shard."""
    if spread is None:
        return {(): ()}
    cutting = [axis for axis, placement in enumerate(spread.placements) if not isinstance(placement, Replicate)]
    every = itertools.product(*(range(spread.mesh.size(axis)) for axis in range(spread.mesh.ndim)))
    return {at: tuple(at[axis] for axis in cutting) for at in every}


def coordinates(spread: Spread | None) -> tuple[int, ...]:
    """Those of this rank."""
    return () if spread is None else tuple(spread.mesh.get_coordinate())


def spread_out(whole: Tensor, spread: Spread | None) -> Any:
    """The tensor as this rank has it: a DTensor, or a copy of its own."""
    here = cut(whole, spread).contiguous().clone()
    if spread is None:
        return here
    return DTensor.from_local(here, *spread, run_check=False, shape=whole.shape, stride=whole.stride())


def here_of(t: Any) -> Tensor:
    """What is here of a tensor, detached."""
    return (t.to_local() if isinstance(t, DTensor) else t).detach()
