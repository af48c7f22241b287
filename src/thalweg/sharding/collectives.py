"""All-reduces over the ranks of a mesh, and the comparison of lists of parameters at the first step."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.torch_private import default_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

PATIENCE = 1.0  # seconds after which a rank that others wait for is looked for


def all_reduce(x: Tensor, mesh: DeviceMesh, dims: tuple[int, ...]) -> Tensor:
    """The sums of a vector over those dimensions of a mesh, on its device: one all-reduce if they are all ranks."""
    there = x if x.is_meta else x.to(device_of(mesh))
    for group in _groups(mesh, dims):
        torch.distributed.all_reduce(there, group=group)
    return there


def device_of(mesh: DeviceMesh) -> torch.device:
    """Where the ranks of a mesh exchange tensors; parameters may be elsewhere, offloaded to the CPU."""
    return _device(mesh.device_type)


def device_of_group(group: ProcessGroup) -> torch.device:
    """The same of a process group."""
    return _device("cuda" if "nccl" in torch.distributed.get_backend(group) else "cpu")


def _device(kind: str) -> torch.device:
    return torch.device(kind) if kind == "cpu" else torch.device(kind, torch.accelerator.current_device_index())


def every_dim(mesh: DeviceMesh) -> tuple[int, ...]:
    """The dimensions of a mesh that have more than one rank."""
    return tuple(d for d, size in enumerate(mesh.shape) if size > 1)


def _groups(mesh: DeviceMesh, dims: tuple[int, ...]) -> list[ProcessGroup | None]:
    """Asked of the mesh itself: another one of the same ranks is equal to it, and has other groups."""
    if mesh.get_coordinate() is None:
        return []
    if len(dims) > 1 and dims == every_dim(mesh) and mesh.size() == torch.distributed.get_world_size():
        return [None]
    return [mesh.get_group(d) for d in dims]


def has_others(mesh: DeviceMesh) -> bool:
    """Whether there are other ranks on a mesh of this one; a fake process group has none."""
    if mesh.get_coordinate() is None or not every_dim(mesh):
        return False
    return torch.distributed.get_backend() != "fake"


def is_first(mesh: DeviceMesh) -> bool:
    """Whether this is the first rank of a mesh."""
    return not any(mesh.get_coordinate() or ())


def gather(x: Any, mesh: DeviceMesh) -> list[tuple[int, Any]]:
    """What each rank of a mesh has to say, with its number in the world; any object that can be pickled."""
    found = [(torch.distributed.get_rank(), x)]
    for group in _groups(mesh, every_dim(mesh)):
        everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(everyone, found, group=group)
        found = [one for some in everyone for one in some]
    return sorted(found, key=lambda one: one[0])


def compare(described: Sequence[str], mesh: DeviceMesh, order: int) -> None:
    """Raise ``ValueError`` on all ranks of a mesh unless all describe their parameters on it alike, in one order.

    Args:
        described: what each rank is to have in common with the others, a line for each parameter.
        mesh: the mesh.
        order: how many optimizers have made their first step in this process.

    Raises:
        ValueError: for the first parameter that differs, or where the optimizer of another rank has none.
    """
    if not has_others(mesh):
        return
    digest = hashlib.sha256("\n".join(described).encode()).digest()
    numbers = [int.from_bytes(digest[i : i + 2], "big") for i in (0, 2, 4)]  # whose sums of squares are exact
    sums = torch.tensor([[h, h * h] for h in numbers], dtype=torch.float64).to(device_of(mesh))
    for group in _groups(mesh, every_dim(mesh)):
        work = torch.distributed.all_reduce(sums, group=group, async_op=True)
        _wait(work, mesh, order)
    if all(int(total) ** 2 == mesh.size() * int(squares) for total, squares in sums.tolist()):
        return
    (first, expected), *rest = gather(list(described), mesh)
    other, others = next((rank, lines) for rank, lines in rest if lines != expected)
    _refuse(expected, others, first, other)


_ADVICE = "build the optimizer from the same list on each rank"


def _refuse(one: list[str], other: list[str], rank: int, other_rank: int) -> None:
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    first, second = (lines[place] if place < len(lines) else "none" for lines in (one, other))
    raise ValueError(
        "params must be the same on all ranks of a mesh, and in the same order, got as sharded parameter number "
        f"{place} {first} on rank {rank} and {second} on rank {other_rank}: {_ADVICE}"
    )


def say_empty(order: int) -> None:
    """Let ranks that wait for this one in :func:`compare` know that its optimizer has no parameters."""
    default_store().set(_empty(order, torch.distributed.get_rank()), "1")


def _empty(order: int, rank: int) -> str:
    return f"thalweg/without-parameters/{order}/{rank}"


def _wait(work: Any, mesh: DeviceMesh, order: int) -> None:
    """Wait for a collective; where it does not come, look whether some rank will never take part."""
    begun = time.monotonic()
    ranks = mesh.mesh.flatten().tolist()
    while not work.is_completed():
        waited = time.monotonic() - begun
        time.sleep(0.0 if waited < 0.01 else 0.005)
        if waited < PATIENCE:
            continue
        begun = time.monotonic()
        for rank in ranks:
            if default_store().check([_empty(order, rank)]):
                raise ValueError(
                    f"params must not be empty on rank {rank}, which is in the mesh of parameters of other ranks: "
                    f"{_ADVICE}, or give every rank process_group= if each has parameters of its own"
                )
    work.wait()
