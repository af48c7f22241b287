"""Whose memory may be written to: gradients as scratch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from thalweg.backends import Layer, local
from thalweg.backends.pieces import Scratch, is_dense


def overwritable(params: Iterable[Tensor]) -> frozenset[Tensor]:
    """The parameters whose gradient may be written to without anything else changing; none in a step being compiled.

    Such a gradient is dense, laid out as its parameter, without a graph, and shares no memory with another gradient or
    a parameter: of ``a.view(-1) + b.view(-1)`` autograd gives both gradients the same memory.
    """
    if torch.compiler.is_compiling():
        return frozenset()
    params = [p for p in params if p.grad is not None]
    owned = [(_span(p), None) for p in params] + [(_span(p.grad), p) for p in params]
    shared: set[Tensor | None] = set()
    last_end, last = ("", 0), None
    for (device, start, end), p in sorted(((span, p) for span, p in owned if span is not None), key=lambda it: it[0]):
        if (device, start) < last_end:
            shared |= {p, last}
        if (device, end) > last_end:
            last_end, last = (device, end), p
    return frozenset(p for p in params if p not in shared and _fits(p, p.grad))


def memory_for_r(layer: Layer, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """Memory for r of the whole layer: that of its gradient, if it may be overwritten and has ``dtype``."""
    if layer.overwrite_grad and layer.grad.dtype == dtype:
        return layer.grad
    return scratch.like(layer.param, dtype, "r")


def _fits(p: Any, g: Any) -> bool:
    if hasattr(p, "device_mesh") and (p.device_mesh, p.placements) != (g.device_mesh, g.placements):
        return False
    own, there = local(g), local(p)
    return _is_plain(own) and not own.requires_grad and is_dense(own) and own.stride() == there.stride()


def _span(t: Any) -> tuple[str, int, int] | None:
    """Device, first byte and end of a tensor's memory; None if it has none."""
    t = local(t)
    if not _is_plain(t) or t.numel() == 0:
        return None
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return str(t.device), t.data_ptr(), t.data_ptr() + extent * t.element_size()


def _is_plain(t: Tensor) -> bool:
    return type(t) in (Tensor, torch.nn.Parameter) and t.layout == torch.strided
