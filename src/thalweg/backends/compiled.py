"""``fused=True`` on the CPU: kernels in C++, called once for all layers.

``kernels.cpp`` serves every shape and all values of the hyperparameters; other dtypes make another build, of half a
second or so. Inductor's cache directory keeps it: only the first process on a machine waits.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.backends import Hyper, Layer, Scales, compute_dtype, foreach, single, toolchain
from thalweg.backends.addresses import is_plain, walk
from thalweg.backends.pieces import Scratch

_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_Row: TypeAlias = tuple[int | float, ...]
_Variant: TypeAlias = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype, torch.dtype | None, bool, bool]


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("theta", "grad", "m", "v", "b")),
        *((name, ctypes.c_int64) for name in ("rows", "size")),
        *((name, ctypes.c_double) for name in ("correction2", "correction3")),
        ("seed", ctypes.c_uint64),
    )


class _Hyper(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_double)
        for name in (
            *("scale", "gain", "weight1", "weight2", "weight3"),
            *("eps", "weight_decay", "lr", "trust_eps", "low", "high"),
        )
    )


class _Vector(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("size", "bytes")),
        ("limit", ctypes.c_uint64),
    )


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on each layer, in place, with no temporary but a copy of a gradient that is laid out otherwise.

    Sharded layers are left to :mod:`~thalweg.backends.foreach`; to :mod:`~thalweg.backends.single` those with gaps in
    their memory, and stacks whose layers are not contiguous.
    """
    if scales.go is not None and not scales.go.item():
        return
    calls: dict[torch.dtype, list[_Row]] = defaultdict(list)
    sharded: list[Layer] = []
    others: list[Layer] = []
    walks = []
    correction = functools.cache(lambda beta, count: 1.0 / float(eq.bias_correction(beta, count)))
    for layer in layers:
        size = layer.param.numel()
        if size == 0:
            continue
        found = walk(layer, hyper)
        if found is None:
            (sharded if hasattr(layer.param, "device_mesh") else others).append(layer)
            continue
        walks.append(found)
        count = float(layer.step)
        corrections = correction(hyper.beta2, count), correction(hyper.beta3, count)
        row = *found.addresses, found.slices, size // found.slices, *corrections, layer.seed
        calls[found.layer.grad.dtype].append(row)
    if sharded:
        foreach.step(sharded, hyper, scales._replace(go=None), scratch)
    if others:
        single.step(others, hyper, scales._replace(go=None), scratch)
    numbers = _numbers(hyper, scales)
    for dtype, rows in calls.items():
        kernel = _kernel(_variant(layers[0], dtype, hyper))
        kernel(_array(_Layer, rows), len(rows), ctypes.byref(numbers), torch.get_num_threads())
    # As in-place operations do, so that a backward pass of what was computed before the step raises.
    torch.autograd.graph.increment_version([found.layer.param for found in walks])


def all_within(tensors: Sequence[Tensor], limits: Sequence[float]) -> bool | None:
    """Whether no tensor has a NaN or an entry of a magnitude above its limit; None if the kernel cannot tell."""
    if not all(t.is_cpu and t.dtype in _TYPES and is_plain(t) for t in tensors):
        return None
    rows: list[_Row] = [
        (t.data_ptr(), t.numel(), t.element_size(), _bits(limit, t.dtype))
        for t, limit in zip(tensors, limits, strict=True)
    ]
    return bool(_judge()(_array(_Vector, rows), len(rows), torch.get_num_threads()))


def _array(structure: type[ctypes.Structure], rows: Sequence[_Row]) -> Any:
    return (structure * len(rows))(*rows)  # type: ignore[misc]  # makes a structure of each row


def _numbers(hyper: Hyper, scales: Scales) -> _Hyper:
    low, high = (0.0, math.inf) if hyper.trust_clip is None else hyper.trust_clip
    return _Hyper(
        (-1.0 if hyper.maximize else 1.0) * (1.0 if scales.grad is None else scales.grad.item()),
        eq.gain(hyper.alpha, hyper.beta1),
        1.0 - hyper.beta1,
        1.0 - hyper.beta2,
        1.0 - hyper.beta3,
        hyper.eps,
        hyper.weight_decay,
        float(hyper.lr),
        hyper.trust_eps,
        low,
        high,
    )


def _variant(layer: Layer, grad: torch.dtype, hyper: Hyper) -> _Variant:
    """What kernels are compiled for: the dtypes of a layer's tensors, and the branches that are taken."""
    return (
        layer.param.dtype,
        grad,
        layer.exp_avg.dtype,
        layer.exp_avg_sq.dtype,
        None if layer.explore_ema is None else layer.explore_ema.dtype,
        hyper.trust_ratio,
        hyper.stochastic_rounding and layer.param.dtype == torch.bfloat16,
    )


@functools.cache
def _kernel(variant: _Variant) -> toolchain.Function:
    param, grad, exp_avg, exp_avg_sq, explore_ema, trust_ratio, stochastic_rounding = variant
    macros = {
        "PARAM": _TYPES[param],
        "GRAD": _TYPES[grad],
        "EXP_AVG": _TYPES[exp_avg],
        "EXP_AVG_SQ": _TYPES[exp_avg_sq],
        "EXPLORE_EMA": _TYPES[explore_ema or exp_avg],
        "REAL": _TYPES[compute_dtype(param)],
        "EXPLORE": int(explore_ema is not None),
        "TRUST_RATIO": int(trust_ratio),
        "STOCHASTIC_ROUNDING": int(stochastic_rounding),
    }
    arguments = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    return toolchain.load("kernels.cpp", "step", macros, arguments)


@functools.cache
def missing() -> str | None:
    """Why kernels cannot be built here; None if they can."""
    try:
        _judge()
    except RuntimeError as error:
        return str(error)
    return None


@functools.cache
def _judge() -> toolchain.Function:
    return toolchain.load("finite.cpp", "all_within", {}, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64))


@functools.cache
def _bits(limit: float, dtype: torch.dtype) -> int:
    """The largest number of a dtype that is at most ``limit``, as the integer that has its bits."""
    number = torch.tensor(min(limit, torch.finfo(dtype).max), dtype=dtype)
    if number.item() > limit:  # rounded up
        number = torch.nextafter(number, torch.zeros_like(number))
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(number.view(integers[dtype.itemsize]).item())
