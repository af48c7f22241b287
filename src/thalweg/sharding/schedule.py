"""What the ranks tell each other in a step, from the list of parameters alone: never from which have gradients.

A missing gradient, or a shard without elements, then leaves a rank with zeros to add, and no rank waits for another.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.sharding import is_sharded, local
from thalweg.sharding.collectives import every_dim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


class Cut(NamedTuple):
    """The dimensions of a mesh over whose ranks the norms of a layer reach."""

    mesh: DeviceMesh
    dims: tuple[int, ...]

    @property
    def copies(self) -> int:
        """How often squares are counted that are summed over all ranks of the mesh, if the others have copies."""
        return math.prod(size for d, size in enumerate(self.mesh.shape) if d not in self.dims)


class OnMesh(NamedTuple):
    """The parameters on one mesh, or on several of the same ranks, in the order of the list.

    With them how much of a rank's squares counts, replicas once, and the numbers of their groups.
    """

    mesh: DeviceMesh
    params: list[Tensor]
    weights: list[float]
    groups: list[int]


class Schedule:
    """The parameters of each mesh, and which of their norms reach over ranks; smaller meshes first.

    Of meshes of the same ranks, as experts and the rest of a model have, the one with the fewest dimensions stands for
    all in ``meshes``: ``same`` says of each which. ``has_one_round``: whether each norm reaches over all ranks of a
    mesh that have no copies of each other's shards, or over none. One sum can then have all there is to tell.

    Args:
        lists: the parameters of each group.
        norm_dims: of each group, the axes over which norms are taken, None for all.
    """

    def __init__(self, lists: Sequence[Sequence[Tensor]], norm_dims: Sequence[tuple[int, ...] | None]) -> None:
        self.lists, self.norm_dims = [list(params) for params in lists], list(norm_dims)
        self.meshes: dict[DeviceMesh, OnMesh] = {}
        self.cuts: dict[Tensor, Cut] = {}
        self.has_one_round = True
        self.same = _same_ranks(p for params in self.lists for p in params if is_sharded(p))
        for i, (params, dims) in enumerate(zip(self.lists, self.norm_dims, strict=True)):
            for p in params:
                if not is_sharded(p):
                    continue
                mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
                one = self.same[mesh]
                on = self.meshes.setdefault(one, OnMesh(one, [], [], []))
                on.params.append(p)
                if i not in on.groups[-1:]:
                    on.groups.append(i)
                on.weights.append(1.0 / _copies(mesh, placements))
                if cutting := _cutting(mesh, placements, p.ndim, dims):
                    self.cuts[p] = Cut(mesh, cutting)
                    others = [placements[d] for d in every_dim(mesh) if d not in cutting]
                    self.has_one_round &= not any(hasattr(placement, "dim") for placement in others)
        # What the ranks of a mesh find out together, those of a larger one then hear.
        self.meshes = dict(sorted(self.meshes.items(), key=lambda item: item[0].size()))

    def is_of(self, groups: Sequence[dict[str, Any]], norm_dims: Sequence[tuple[int, ...] | None]) -> bool:
        """Whether these are still the parameters of the groups."""
        return (
            len(groups) == len(self.lists)
            and list(norm_dims) == self.norm_dims
            and all(_same(group["params"], params) for group, params in zip(groups, self.lists, strict=True))
        )


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _same_ranks(params: Iterable[Any]) -> dict[DeviceMesh, DeviceMesh]:
    """Of each mesh of DTensors one of the same ranks, the first of those with the fewest dimensions."""
    meshes = dict.fromkeys(p.device_mesh for p in params)
    if len(meshes) == 1:
        return {mesh: mesh for mesh in meshes}
    found: dict[tuple[object, ...], list[DeviceMesh]] = {}
    for mesh in meshes:
        found.setdefault((mesh.device_type, *sorted(mesh.mesh.flatten().tolist())), []).append(mesh)
    fewest = [(same, min(same, key=lambda mesh: len(every_dim(mesh)))) for same in found.values()]
    return {mesh: one for same, one in fewest for mesh in same}


def _copies(mesh: DeviceMesh, placements: Sequence[Any]) -> int:
    """How many ranks have the same shard."""
    copies = 1
    for size, placement in zip(mesh.shape, placements, strict=True):
        copies *= 1 if hasattr(placement, "dim") else size
    return copies


def _cutting(
    mesh: DeviceMesh, placements: Sequence[Any], axes: int, norm_dims: tuple[int, ...] | None
) -> tuple[int, ...]:
    """The dimensions of a mesh that cut an axis which a norm covers."""
    covered = range(axes) if norm_dims is None else {d % axes for d in norm_dims}
    return tuple(
        d
        for d, (size, placement) in enumerate(zip(mesh.shape, placements, strict=True))
        if size > 1 and getattr(placement, "dim", None) in covered
    )


def describe(p: Any, name: str | None, options: Mapping[str, object]) -> str:
    """A parameter as all ranks of its mesh should know it."""
    of = f"{name!r} " if name else ""
    what = f"{of}of shape {tuple(p.shape)}, {p.dtype}, {p.placements}"
    named = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{what}, {'trained' if p.requires_grad else 'frozen'}, with {named}"


def local_shape(p: Any) -> tuple[int, ...]:
    """The shape of the shard that is here."""
    return tuple(local(p).shape)
