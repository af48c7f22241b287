"""Layers as kernels see them: the memory of each tensor, and how many of its parts have norms of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.kernels import UNWALKABLE, Hyper, Layer, Memory, eightbit, has_numbers
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
from thalweg.sharding import is_sharded, local


def checked_memory(p: Any, grad: Any, state: dict[str, Any], optimizer: str) -> Memory | None:
    """Where a layer is, all of it checked that may change from step to step; None if it has no state yet.

    Of a layer that is sharded, that is where its shard is. Fake tensors, and those on meta, have no memory to walk.

    Raises:
        ValueError, TypeError, RuntimeError: what :mod:`thalweg.kernels.checks` says of a tensor that does not fit.
    """
    if state:
        try:  # what a model of many small layers spends here is a tenth of its step
            m, v, b = state["exp_avg"], state["exp_avg_sq"], state.get("explore_ema")
            x, g, plain = p, grad, type(p) in PLAIN
            if not plain and is_sharded(p) and p.placements == grad.placements and p.shape == grad.shape:
                x, g, m, v = local(p), local(grad), local(m), local(v)
                b = None if b is None else local(b)
                plain = type(x) in PLAIN
            shape = x.shape
            if (
                plain
                and type(g) in PLAIN
                and type(m) in PLAIN
                and type(v) in PLAIN
                and (b is None or (type(b) in PLAIN and b.shape == shape))
                and g.shape == shape
                and m.shape == shape
                and v.shape == shape
                and g.dtype is x.dtype
                and g.get_device() == x.get_device()
            ):
                at = g.data_ptr()
                if at >= LOW or g.numel() == 0:
                    return _locate_plain(x, g, m, v, b, at)
        except (KeyError, AttributeError, RuntimeError):
            pass
    if not has_numbers(p):  # torch's operations check for themselves
        return UNWALKABLE
    check_parameter(p, optimizer)
    check_gradient(p, grad, optimizer)
    if not state or state.keys().isdisjoint(("step", *BUFFERS)):
        return None
    check_state(p, state)
    b = state.get("explore_ema")
    here = local(state["exp_avg"]), local(state["exp_avg_sq"]), None if b is None else local(b)
    return locate(local(p), local(grad), *here)


def locate(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, explore_ema: Tensor | None) -> Memory:
    """Where a layer is; ``UNWALKABLE`` if it has gaps, or is otherwise not for kernels to walk."""
    (m, of_m), (v, of_v), (b, of_b) = _memory(exp_avg), _memory(exp_avg_sq), _memory(explore_ema)
    if not all(t is None or holds_its_values(type(t)) for t in (param, grad, m, v, b)):
        return UNWALKABLE
    found = _locate_plain(param, grad, m, v, b, grad.data_ptr())
    if found.slices == 0 or not (of_m or of_v or of_b):
        return found
    if not param.is_contiguous():
        return UNWALKABLE
    return found._replace(exp_avg_scale=of_m, exp_avg_sq_scale=of_v, explore_ema_scale=of_b)


def _locate_plain(param: Any, grad: Any, m: Any, v: Any, b: Any, at_grad: int) -> Memory:
    if param.is_contiguous() and m.is_contiguous() and v.is_contiguous() and (b is None or b.is_contiguous()):
        alike = grad.is_contiguous()
    else:
        stride = param.stride()
        if not (is_dense(param) and m.stride() == v.stride() == stride and (b is None or b.stride() == stride)):
            return UNWALKABLE
        alike = grad.stride() == stride
    if not alike or grad.is_neg():
        at_grad = 0
    return Memory(param.data_ptr(), at_grad, m.data_ptr(), v.data_ptr(), 0 if b is None else b.data_ptr())


def with_memory(layer: Layer, hyper: Hyper) -> Layer:
    """The layer with its ``memory`` looked up."""
    memory = locate(layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.explore_ema)
    return layer._replace(memory=in_slices(memory, layer.param, layer.norm_dims, hyper))


def in_slices(memory: Memory, param: Tensor, norm_dims: tuple[int, ...] | None, hyper: Hyper) -> Memory:
    """The memory of a layer, cut into the equal parts that have norms of their own.

    Kernels cannot walk it with norms over axes in between, nor where two parts share a scale of 8 bits.
    """
    if memory.slices == 0 or norm_dims is None or not hyper.trust_ratio:
        return memory
    count = _runs(param, norm_dims)
    scaled = memory.exp_avg_scale or memory.exp_avg_sq_scale or memory.explore_ema_scale
    if count == 0 or (scaled and param.numel() // count % eightbit.BLOCK != 0):
        return UNWALKABLE
    return memory if count == 1 else memory._replace(slices=count)


def with_walkable_gradient(layer: Layer) -> Layer:
    """The layer, its gradient copied if that has no memory, or another layout than its parameter.

    It is to be kept until the kernels have finished.
    """
    memory = layer.memory
    assert memory is not None, "kernels are given only what they can walk"
    if memory.grad != 0:
        return layer
    grad = torch.empty_like(layer.param, dtype=layer.grad.dtype).copy_(layer.grad)
    return layer._replace(grad=grad, memory=memory._replace(grad=grad.data_ptr()))


def is_walkable(layer: Layer) -> bool:
    """Whether kernels can walk the layer: all tensors in one layout without gaps, and so each part with its norm."""
    return layer.memory is not None and layer.memory.slices > 0


def is_plain(t: Tensor) -> bool:
    """Whether the memory of ``t`` holds its values, but perhaps their signs; that of a subclass may hold anything."""
    return (type(t) in PLAIN and t.is_contiguous()) or (holds_its_values(type(t)) and is_dense(t))


def _memory(t: Any) -> tuple[Any, int]:
    """The tensor that holds the values of state ``t``, its codes if in 8 bits, and where their scales are, or 0."""
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
