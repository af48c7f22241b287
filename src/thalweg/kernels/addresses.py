"""Layers as kernels see them: addresses, and how many elements lie there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.kernels import Hyper, Layer, eightbit, has_numbers
from thalweg.kernels.checks import (
    BUFFERS,
    LOW,
    PLAIN,
    check_gradient,
    check_parameter,
    check_state,
    holds_its_values,
)
from thalweg.kernels.pieces import is_dense


def look(p: Any, grad: Any, state: dict[str, Any], optimizer: str) -> tuple[int, ...] | None:
    """The ``addresses`` of a layer, all of it checked that may change from step to step; None if it has no state yet.

    Those of a fake tensor, or of one on meta, are none.

    Raises:
        ValueError, TypeError, RuntimeError: what :mod:`thalweg.kernels.checks` says of a tensor that does not fit.
    """
    if state:
        try:  # what a model of many small layers spends here is a tenth of its step
            shape = p.shape
            m, v, b = state["exp_avg"], state["exp_avg_sq"], state.get("explore_ema")
            if (
                type(p) in PLAIN
                and type(grad) in PLAIN
                and type(m) in PLAIN
                and type(v) in PLAIN
                and (b is None or (type(b) in PLAIN and b.shape == shape))
                and grad.shape == shape
                and m.shape == shape
                and v.shape == shape
                and grad.dtype is p.dtype
                and grad.get_device() == p.get_device()
            ):
                at = grad.data_ptr()
                if at >= LOW:
                    return _lie(p, grad, m, v, b, at)
        except (KeyError, AttributeError, RuntimeError):
            pass
    if not has_numbers(p):  # torch's operations look themselves
        return ()
    check_parameter(p, optimizer)
    check_gradient(p, grad, optimizer)
    if not state or state.keys().isdisjoint(("step", *BUFFERS)):
        return None
    check_state(p, state)
    return lie(p, grad, state["exp_avg"], state["exp_avg_sq"], state.get("explore_ema"))


def lie(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, explore_ema: Tensor | None
) -> tuple[int, ...]:
    """The ``addresses`` of a layer; none if it is sharded, has gaps, or is otherwise not for kernels to walk."""
    (m, of_m), (v, of_v), (b, of_b) = _memory(exp_avg), _memory(exp_avg_sq), _memory(explore_ema)
    if not all(t is None or holds_its_values(type(t)) for t in (param, grad, m, v, b)):
        return ()
    scales = (of_m, of_v, of_b)
    found = _lie(param, grad, m, v, b, grad.data_ptr(), scales)
    return found if param.is_contiguous() or not any(scales) else ()


def _lie(
    param: Any, grad: Any, m: Any, v: Any, b: Any, at_grad: int, scales: tuple[int, int, int] = (0, 0, 0)
) -> tuple[int, ...]:
    if param.is_contiguous() and m.is_contiguous() and v.is_contiguous() and (b is None or b.is_contiguous()):
        alike = grad.is_contiguous()
    else:
        stride = param.stride()
        if not (is_dense(param) and m.stride() == v.stride() == stride and (b is None or b.stride() == stride)):
            return ()
        alike = grad.stride() == stride
    if not alike or grad.is_neg():
        at_grad = 0
    return (param.data_ptr(), at_grad, m.data_ptr(), v.data_ptr(), 0 if b is None else b.data_ptr(), *scales)


def located(layer: Layer, hyper: Hyper) -> Layer:
    """The layer with its ``addresses`` and ``slices``."""
    addresses = lie(layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.explore_ema)
    return layer._replace(addresses=addresses, slices=slices(layer.param, addresses, layer.norm_dims, hyper))


def slices(param: Tensor, addresses: tuple[int, ...], norm_dims: tuple[int, ...] | None, hyper: Hyper) -> int:
    """How many equal parts of a layer's memory have norms of their own; 0 if kernels cannot walk it.

    So it is without addresses, with norms over axes in between, and where a scale of 8 bits is that of two parts.
    """
    if not addresses:
        return 0
    count = 1 if norm_dims is None or not hyper.trust_ratio else _runs(param, norm_dims)
    if count == 0 or (any(addresses[5:]) and param.numel() // count % eightbit.BLOCK != 0):
        return 0
    return count


def with_gradient(layer: Layer) -> Layer:
    """The layer, its gradient copied if that is zeros without memory, or values that lie otherwise than its parameter.

    It is to be kept until the kernels are through.
    """
    at = layer.addresses
    assert at, "plan leaves to others what kernels cannot walk"
    if at[1] != 0:
        return layer
    grad = torch.empty_like(layer.param, dtype=layer.grad.dtype).copy_(layer.grad)
    return layer._replace(grad=grad, addresses=(at[0], grad.data_ptr(), *at[2:]))


def is_plain(t: Tensor) -> bool:
    """Whether the memory of ``t`` holds its values, but perhaps their signs; that of a subclass may hold anything."""
    return holds_its_values(type(t)) and is_dense(t)


def _memory(t: Any) -> tuple[Any, int]:
    """The tensor whose memory is that of state ``t``, its codes if in 8 bits, and where their scales lie, or 0."""
    if type(t) is Tensor or getattr(t, "block_size", None) != eightbit.BLOCK:
        return t, 0
    return t.codes, t.scale.data_ptr()


def _runs(param: Tensor, norm_dims: tuple[int, ...]) -> int:
    """How many equal runs of memory have norms of their own; 0 if what has is no such run."""
    outer = param.ndim - len(norm_dims)
    if sorted(norm_dims) != list(range(outer, param.ndim)) or outer == param.ndim:
        return 0
    runs = math.prod(param.shape[:outer])
    return runs if runs == 1 or param.is_contiguous() else 0
