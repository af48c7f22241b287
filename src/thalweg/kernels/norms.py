"""2-norms, right whatever the size of the entries: the squares of 1e25 and of 1e-25 are beyond float32."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import alike, compute_dtype
from thalweg.kernels.pieces import PIECE, flat, piece_size
from thalweg.sharding import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from thalweg.kernels import Layer


def norms(tensors: list[Tensor], *, on_host: bool = False) -> Tensor:
    """The norm of each tensor, a vector in float64; the tensors are real and share device and dtype.

    On the CPU :func:`fast_norms` are several times faster, and serve where numbers may be read ``on_host`` to see it;
    a norm that they may not hold is computed again, from that tensor alone: none depends on the others.
    """
    if not on_host:
        return _exact(tensors)
    fast = fast_norms(tensors)
    found = fast.double()
    low, high = exact_range(fast.dtype)
    for i, norm in enumerate(fast.tolist()):
        if not low < norm < high:
            found[i] = eq.norm(tensors[i])
    return found


def _exact(tensors: list[Tensor]) -> Tensor:
    if tensors[0].dtype == torch.float64 or tensors[0].device.type == "mps":
        return torch.stack([eq.norm(t.to(compute_dtype(t.dtype))) for t in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float64))  # on CUDA without a copy in float64


def fast_norms(tensors: list[Tensor]) -> Tensor:
    """The norm of each tensor in its own dtype, but float32 at least, which may not hold the squares."""
    dtype = compute_dtype(tensors[0].dtype)
    if all(t.is_cpu and t.dtype == dtype and t.numel() >= PIECE // 8 for t in tensors):
        vectors = flat(tensors)
        if vectors is not None:  # nearer than the norm, and twice as fast
            return torch.stack([torch.dot(x, x) for x in vectors]).sqrt_()
    return torch.stack(torch._foreach_norm(tensors, 2.0, dtype=dtype))


@functools.cache
def exact_range(dtype: torch.dtype) -> tuple[float, float]:
    """Between which a norm computed in ``dtype`` shows that no square that matters was beyond it."""
    limits = torch.finfo(dtype)
    return limits.tiny**0.5 * 1e7, limits.max**0.5 / 10.0


def norms_over(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """:func:`thalweg.equations.norm` of the layers stacked in ``x``, at most a piece of them at a time if it can be."""
    size = piece_size(x.device)
    rest = [d for d in range(x.ndim) if d not in dims]
    if x.numel() <= size or not rest or torch.compiler.is_compiling():
        return eq.norm(x, dims)
    axis = max(rest, key=lambda d: x.shape[d])
    count = max(1, size * x.shape[axis] // x.numel())
    return torch.cat([eq.norm(part, dims) for part in x.split(count, axis)], axis)  # type: ignore[no-untyped-call]


PARTS = 3
"""Numbers that the square of a float64 norm takes where squares are added up over ranks; others take 1."""
_FAR = 2.0**550


def parts_of(dtype: torch.dtype) -> int:
    """How many numbers a sum of squares takes, of a layer that is computed in ``dtype``."""
    return PARTS if dtype in (torch.float64, torch.complex128) else 1


def rows_of(sums: Tensor, layer: Layer) -> Tensor:
    """The place of a layer's squares among all ``sums``, of shape (stacked layers, θ and r, parts)."""
    assert layer.slot is not None
    rows, parts = count_rows(layer.param.shape, layer.norm_dims), parts_of(layer.param.dtype)
    return sums[layer.slot : layer.slot + 2 * rows * parts].view(rows, 2, parts)


def count_rows(shape: Sequence[int], norm_dims: tuple[int, ...] | None) -> int:
    """How many layers, each with a norm of its own, are stacked in a shape."""
    return 1 if norm_dims is None else math.prod(n for axis, n in enumerate(shape) if axis not in norm_dims)


def squares(norms: Tensor, parts: int) -> Tensor:
    """The squares of norms, in float64, as they may be added up: with a last axis of ``parts``.

    Of three, the first is for norms whose squares would be too small for a float64, scaled, and the last for those
    whose squares would be too large.
    """
    norms = norms.double()
    if parts == 1:
        return norms.square().unsqueeze(-1)
    small, large = norms < 1.0 / 2.0**500, norms > 2.0**500
    found = [(norms * _FAR, small), (norms, ~(small | large)), (norms / _FAR, large)]
    return torch.stack([torch.where(here, x, 0.0).square() for x, here in found], -1)


def norm_of(sums: Tensor) -> Tensor:
    """The norms whose :func:`squares` have been added up."""
    if sums.shape[-1] == 1:
        return sums.squeeze(-1).sqrt()
    small, medium, large = sums.sqrt().unbind(-1)
    return torch.hypot(torch.hypot(small / _FAR, medium), large * _FAR)


def squares_of(tensors: Iterable[Tensor], weights: Iterable[float] = (), *, may_read: bool = False) -> Tensor:
    """The :func:`squares` of the norms of plain tensors, added up: each counts with its weight, or once.

    Where it ``may_read`` numbers on the host, it is several times faster for tensors on the CPU.
    """
    real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]
    weight = dict(zip(map(id, real), weights, strict=False))
    total = torch.zeros(PARTS, dtype=torch.float64, device=real[0].device if real else "cpu")
    for some in alike(t for t in real if t.numel() > 0).values():
        found = squares(norms(some, on_host=may_read and some[0].is_cpu), PARTS)
        if weight:
            found = found * torch.tensor([[weight[id(t)]] for t in some], dtype=torch.float64, device=found.device)
        total += found.sum(0).to(total.device)
    return total


def global_norm(gradients: Iterable[Tensor], *, may_read: bool = False) -> Tensor:
    """The 2-norm of all gradients together, over all shards, whatever the size of their entries.

    Where it ``may_read`` numbers on the host, it is several times faster for gradients on the CPU.
    """
    groups = alike(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients)
    if not groups:
        return torch.zeros((), dtype=torch.float32, device="cpu")
    if may_read and all(device.type == "cpu" and mesh is None for device, _, mesh in groups):
        total: Tensor = torch.linalg.vector_norm(torch.cat([fast_norms(some) for some in groups.values()]))
        low, high = exact_range(torch.float32)
        if low < total.item() < high:
            return total
    device = next(iter(groups))[0]
    found = [whole(norms(some)).to(device) for some in groups.values()]
    return eq.norm(torch.cat(found))
