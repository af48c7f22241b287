"""Layers as kernels see them: addresses, and how many elements lie there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from thalweg.backends import Hyper, Layer, lowbit
from thalweg.backends.pieces import is_dense

_PLAIN = frozenset({Tensor, Parameter})


class Walk(NamedTuple):
    """A layer whose tensors lie alike in memory and without gaps.

    ``addresses`` are those of θ, g, m, v and b, and of the scales of m, v and b, 0 for what there is not; ``slices`` is
    how many equal parts of that memory have norms of their own. The layer is to be kept until the kernels are through:
    its gradient may be a copy.
    """

    layer: Layer
    slices: int
    addresses: tuple[int, ...]


def walk(layer: Layer, hyper: Hyper) -> Walk | None:
    """The layer as kernels can walk it, or None: one that is sharded, has gaps, or norms over axes in between.

    Nor do they walk state in 8 bits where a scale is that of numbers of two slices, or that do not lie together.
    """
    param, grad, _, m, v, b, norm_dims, *_ = layer
    (m, of_m), (v, of_v), (b, of_b) = _memory(m), _memory(v), _memory(b)
    own = (param, m, v) if b is None else (param, m, v, b)
    if type(grad) not in _PLAIN or not _PLAIN.issuperset(map(type, own)):
        return None
    contiguous = all(map(Tensor.is_contiguous, own))
    if not contiguous and not (is_dense(param) and all(t.stride() == param.stride() for t in own)):
        return None
    slices = 1 if norm_dims is None or not hyper.trust_ratio else _slices(param, norm_dims)
    if slices == 0 or ((of_m or of_v or of_b) and not (contiguous and param.numel() // slices % lowbit.BLOCK == 0)):
        return None
    alike = grad.is_contiguous() if contiguous else grad.stride() == param.stride()
    at = grad.data_ptr()
    if at == 0 or grad.is_neg() or not alike:  # zeros without memory, or values elsewhere
        grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
        layer, at = layer._replace(grad=grad), grad.data_ptr()
    at_b = 0 if b is None else b.data_ptr()
    return Walk(layer, slices, (param.data_ptr(), at, m.data_ptr(), v.data_ptr(), at_b, of_m, of_v, of_b))


def is_plain(t: Tensor) -> bool:
    """Whether the memory of ``t`` holds its values, but perhaps their signs; that of a subclass may hold anything."""
    return type(t) in _PLAIN and is_dense(t)


def _memory(t: Any) -> tuple[Any, int]:
    """The tensor whose memory is that of state ``t``, its codes if in 8 bits, and where their scales lie, or 0."""
    if type(t) is Tensor or getattr(t, "block_size", None) != lowbit.BLOCK:
        return t, 0
    return t.codes, t.scale.data_ptr()


def _slices(param: Tensor, norm_dims: tuple[int, ...]) -> int:
    """How many equal runs of memory have norms of their own; 0 if what has is no such run."""
    outer = param.ndim - len(norm_dims)
    if sorted(norm_dims) != list(range(outer, param.ndim)) or outer == param.ndim:
        return 0
    slices = math.prod(param.shape[:outer])
    return slices if slices == 1 or param.is_contiguous() else 0
