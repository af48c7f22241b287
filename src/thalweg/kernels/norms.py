"""2-norms, right whatever the size of the entries: the squares of 1e25 and of 1e-25 are beyond float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import alike, compute_dtype
from thalweg.kernels.pieces import piece_size
from thalweg.sharding import is_sharded, whole

if TYPE_CHECKING:
    from collections.abc import Iterable


def norms(tensors: list[Tensor], *, on_host: bool = False) -> Tensor:
    """The norm of each tensor, a vector, in float64 at need; the tensors are real and share device and dtype.

    On the CPU :func:`fast_norms` are several times faster, and serve if numbers may be read ``on_host``, to see it.
    """
    if on_host:
        found = fast_norms(tensors)
        if is_exact(found, found.dtype):
            return found
        if found.dtype == torch.float64:  # each by itself, so that none depends on its company
            return torch.stack([n if is_exact(n, n.dtype) else eq.norm(t) for n, t in zip(found, tensors, strict=True)])
    return _exact(tensors)


def _exact(tensors: list[Tensor]) -> Tensor:
    if tensors[0].dtype == torch.float64 or tensors[0].device.type == "mps":
        return torch.stack([eq.norm(t.to(compute_dtype(t.dtype))) for t in tensors])
    return torch.stack(torch._foreach_norm(tensors, 2.0, dtype=torch.float64))  # on CUDA without a copy in float64


def fast_norms(tensors: list[Tensor]) -> Tensor:
    """The norm of each tensor in its own dtype, but float32 at least, which may not hold the squares."""
    return torch.stack(torch._foreach_norm(tensors, 2.0, dtype=compute_dtype(tensors[0].dtype)))


def is_exact(found: Tensor, dtype: torch.dtype) -> bool:
    """Whether norms show that no square that matters was beyond ``dtype``."""
    limits = torch.finfo(dtype)
    low, high = (end.item() for end in found.aminmax())
    return bool(limits.tiny**0.5 * 1e7 < low and high < limits.max**0.5 / 10.0)


def norms_over(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """:func:`thalweg.equations.norm` of the layers stacked in ``x``, at most a piece of them at a time if it can be."""
    size = piece_size(x.device)
    rest = [d for d in range(x.ndim) if d not in dims]
    if x.numel() <= size or not rest or is_sharded(x) or torch.compiler.is_compiling():
        return eq.norm(x, dims)
    axis = max(rest, key=lambda d: x.shape[d])
    count = max(1, size * x.shape[axis] // x.numel())
    return torch.cat([eq.norm(part, dims) for part in x.split(count, axis)], axis)  # type: ignore[no-untyped-call]


def global_norm(gradients: Iterable[Tensor], *, may_read: bool = False) -> Tensor:
    """The 2-norm of all gradients together, over all shards, whatever the size of their entries.

    Where it ``may_read`` numbers on the host, it is several times faster for gradients on the CPU.
    """
    groups = alike(torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in gradients)
    if not groups:
        return torch.zeros(())
    if may_read and all(device.type == "cpu" and mesh is None for device, _, mesh in groups):
        total: Tensor = torch.linalg.vector_norm(torch.cat([fast_norms(some) for some in groups.values()]))
        if is_exact(total, torch.float32):
            return total
    device = next(iter(groups))[0]
    found = [whole(norms(some)).to(device) for some in groups.values()]
    return eq.norm(torch.cat(found))
