"""Where the elements of a shard lie in the whole parameter."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from thalweg import sharding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.device_mesh import DeviceMesh

Ranges: TypeAlias = "list[tuple[int, int]]"
"""What is here of an axis: first and number of the indices that follow each other, of each range."""


class Place(NamedTuple):
    """Runs of ``run`` consecutive elements of the whole, the first from ``start`` on, each ``stride`` after the last.

    Element i of the shard is number ``start + i // run * stride + i % run`` of the whole.
    """

    start: int
    run: int
    stride: int


def place_of(x: Any) -> Place | Tensor:
    """Where the elements of a DTensor's shard lie; a tensor with the number of each where that is no :class:`Place`."""
    return _place(tuple(x.shape), x.device_mesh, tuple(x.placements))


def indices(x: Any, axis: int) -> list[int]:
    """Which ones of an axis of the whole a DTensor has here, in their order; any other tensor has all of them."""
    placed = sharding.placement(x)
    ranges = [(0, x.shape[axis])] if placed is None else _along(x.shape[axis], axis, *placed)
    return [index for first, count in ranges for index in range(first, first + count)]


def is_whole_blocks(place: Place | Tensor, block: int) -> bool:
    """Whether each run begins and ends between blocks of the whole."""
    return isinstance(place, Place) and not any(number % block for number in place)


@functools.lru_cache(maxsize=4096)
def _place(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Any, ...]) -> Place | Tensor:
    axes = [_along(size, axis, mesh, placements) for axis, size in enumerate(shape)]
    counts = [sum(count for _, count in ranges) for ranges in axes]
    if 0 in counts:
        return Place(0, 1, 1)
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    cut = max((axis for axis in range(len(shape)) if counts[axis] < shape[axis]), default=None)  # whole within it
    if cut is None:
        return Place(0, math.prod(shape), math.prod(shape))
    start = sum(ranges[0][0] * step for ranges, step in zip(axes, steps, strict=True))
    (first, run), *others = axes[cut]
    gap = others[0][0] - first if others else shape[cut]
    outer = [axis for axis in range(cut) if counts[axis] > 1]
    regular = (
        [(first + i * gap, run) for i in range(len(axes[cut]))] == axes[cut]
        and (not outer or len(axes[cut]) * gap == shape[cut])
        and all(len(axes[axis]) == 1 for axis in outer)
        and all(counts[axis] == shape[axis] for axis in range(min(outer, default=cut) + 1, cut))
    )
    if regular:
        return Place(start, run * steps[cut], gap * steps[cut])
    index = torch.zeros((), dtype=torch.int64, device="cpu")
    for ranges, step in zip(axes, steps, strict=True):
        here = torch.cat([torch.arange(first, first + count, device="cpu") for first, count in ranges])
        index = index.unsqueeze(-1) + here * step
    return index


def _along(size: int, axis: int, mesh: DeviceMesh, placements: Sequence[Any]) -> Ranges:
    """What is here of an axis, cut by each placement in turn as ``torch.chunk`` cuts."""
    ranges = [(0, size)]
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        return []
    for ranks, coordinate, placement in zip(mesh.shape, coordinates, placements, strict=True):
        if getattr(placement, "dim", None) != axis:
            continue
        # A strided shard has been cut before by what comes after it: a part of each of these pieces.
        factor = int(getattr(placement, "split_factor", 1))
        pieces = [_chunk(ranges, factor, j) for j in range(factor)]
        ranges = _joined([part for piece in pieces for part in _chunk(piece, ranks, coordinate)])
    return ranges


def _chunk(ranges: Ranges, chunks: int, index: int) -> Ranges:
    """One of so many chunks, the last of which may be smaller or empty."""
    total = sum(count for _, count in ranges)
    size = -(-total // chunks)
    begin, end = index * size, min((index + 1) * size, total)
    found = []
    for first, count in ranges:
        low, high = max(begin, 0), min(end, count)
        if low < high:
            found.append((first + low, high - low))
        begin, end = begin - count, end - count
    return found


def _joined(ranges: Ranges) -> Ranges:
    found: Ranges = []
    for first, count in ranges:
        if found and sum(found[-1]) == first:
            found[-1] = found[-1][0], found[-1][1] + count
        else:
            found.append((first, count))
    return found
