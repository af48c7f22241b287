"""2-norms, right whatever the size of the entries: the squares of 1e25 and of 1e-25 are beyond float32."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import compute_dtype
from thalweg.kernels.pieces import piece_size


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
    if x.numel() <= size or not rest or hasattr(x, "device_mesh") or torch.compiler.is_compiling():
        return eq.norm(x, dims)
    axis = max(rest, key=lambda d: x.shape[d])
    count = max(1, size * x.shape[axis] // x.numel())
    return torch.cat([eq.norm(part, dims) for part in x.split(count, axis)], axis)  # type: ignore[no-untyped-call]
