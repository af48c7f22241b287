"""Whether gradients are finite, and their squares too."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.kernels import alike, compute_dtype, cpp
from thalweg.sharding import local

if TYPE_CHECKING:
    from collections.abc import Iterable


def all_finite(gradients: Iterable[Tensor], *, fused: bool = False) -> Tensor:
    """Whether no gradient has an infinity, a NaN or an entry whose square would overflow, about 5e18 in float32.

    Of sharded gradients the shards here are judged, sparse ones by the sums of their entries. If ``fused``, those on
    the CPU are judged by a kernel in C++ where it can walk them.

    Returns:
        A 0-d boolean tensor on the device of the first gradient.
    """
    gradients = [_values(g) if type(g) is not Tensor or g.layout is torch.sparse_coo else g for g in gradients]
    if fused and (within := cpp.all_within(gradients, _limit)) is not None:
        return torch.tensor(within, device="cpu")
    device = gradients[0].device if gradients else None
    verdicts = [
        (largest <= _limit(largest.dtype)).all().to(device)
        for largest in _largest([g for g in gradients if g.numel() > 0])
    ]
    return torch.stack(verdicts).all() if verdicts else torch.ones((), dtype=torch.bool, device=device)


def _values(g: Tensor) -> Tensor:
    """What is here of a gradient, dense."""
    return g.coalesce().values() if g.layout is torch.sparse_coo else local(g)


def refuse_nonfinite(gradients: Iterable[Tensor]) -> None:
    """Raise ``RuntimeError`` for the first gradient that is not :func:`all_finite`."""
    for g in gradients:
        if not all_finite([g]):
            raise RuntimeError(
                f"a gradient of shape {tuple(g.shape)} has an infinity, a NaN or an entry whose square overflows; "
                "nothing has changed"
            )


def _largest(tensors: list[Tensor]) -> list[Tensor]:
    """The magnitudes of the largest entries of the tensors, or NaN; a vector for those of one device and dtype."""
    on_cpu = not torch.compiler.is_compiling() and all(t.is_cpu and t.dtype.is_floating_point for t in tensors)
    found = []
    for (_, dtype, _), some in alike(tensors).items():
        if on_cpu:  # a hundred times faster than that norm
            ends = [end for t in some for end in torch.aminmax(t)]
            found.append(torch.stack(ends).abs().to(compute_dtype(dtype)))
        else:
            wide = None if dtype.is_complex else compute_dtype(dtype)
            found.append(torch.stack(torch._foreach_norm(some, math.inf, dtype=wide)))
    return found


def _limit(dtype: torch.dtype) -> float:
    """The largest gradient whose h, up to 3 times as large, has a square."""
    return float(torch.finfo(compute_dtype(dtype)).max ** 0.5 / 4.0)
