"""``fused=True`` on the CPU: kernels in C++, called once for all layers.

``kernels.cpp`` serves every shape and all values of the hyperparameters; other dtypes make another build, of half a
second or so. A cache directory keeps it: only the first process waits.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from thalweg import equations as eq
from thalweg.equations import Scalar
from thalweg.kernels import Hyper, Layer, Scales, compute_dtype, eightbit
from thalweg.kernels.addresses import is_plain, is_walkable, with_walkable_gradient
from thalweg.kernels.checks import PLAIN
from thalweg.kernels.cpp import toolchain
from thalweg.kernels.pieces import Scratch

_TYPES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_Stored: TypeAlias = torch.dtype | str
_Kernel: TypeAlias = toolchain.Function | str
"""A kernel, or why it is not available, which is found out once."""


class Variant(NamedTuple):
    """What kernels are compiled for: the dtypes of a layer's tensors, and the branches that are taken."""

    param: torch.dtype
    grad: torch.dtype
    exp_avg: _Stored
    exp_avg_sq: _Stored
    explore_ema: _Stored | None
    trust_ratio: bool = False
    stochastic_rounding: bool = False
    cut: bool = False
    late: bool = False


# The structures of the C++ files.
_LAYER = struct.Struct("=10q16sQ32s")
_CORRECTIONS = struct.Struct("=2d")
_PLACE = struct.Struct("=4q")
_HYPER = struct.Struct("=14d")
_WHOLE = (0, 1 << 62, 1 << 62)
_UNCUT = _PLACE.pack(0, *_WHOLE)
_FRACTIONS = struct.Struct("=6q")
_VECTOR = struct.Struct("=2q16s")
_LIMIT = struct.Struct("=qQ")


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on each layer, in place, with no temporary but a copy of a gradient that is laid out otherwise.

    Kernels can walk them all, as :func:`~thalweg.kernels.addresses.is_walkable` says.
    """
    if scales.proceed is not None and not scales.proceed.item():
        return
    packed = _pack(layers, hyper, None)
    _call("step", packed, hyper, scales)
    _note_written(packed)


def begin(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> Packed:
    """The first half of :func:`step` for layers whose norms reach over ranks: their squares here, to ``sums``."""
    packed = _pack(layers, hyper, sums)
    _call("begin", packed, hyper, scales)
    return packed


def finish(begun: Packed, hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> None:
    """The second half, ``sums`` being those of all ranks."""
    if scales.proceed is not None and not scales.proceed.item():
        return
    if begun.sums is not None and begun.sums.data_ptr() != sums.data_ptr():
        begun.sums.copy_(sums)  # where the kernels look for them
    _call("finish", begun, hyper, scales)
    _note_written(begun)


class Packed(NamedTuple):
    """Layers as kernels are told of them, by dtype of gradients; they are kept until the kernels have finished."""

    layers: list[Layer]
    rows: dict[torch.dtype, list[bytes]]
    sums: Tensor | None


def _pack(layers: Sequence[Layer], hyper: Hyper, sums: Tensor | None) -> Packed:
    """Those that have elements."""
    kept: list[Layer] = []
    rows: dict[torch.dtype, list[bytes]] = defaultdict(list)
    start = 0 if sums is None else sums.data_ptr()

    @functools.cache
    def corrections(count: Scalar) -> bytes:
        return _CORRECTIONS.pack(*(1.0 / float(correction) for correction in hyper.corrections(float(count))))

    for layer in layers:
        param, grad, count, _, _, _, memory, _, seed, _, place, slot = layer
        if (size := param.numel()) == 0:
            continue
        if memory is None or memory.grad == 0:
            layer = with_walkable_gradient(layer)
            grad, memory = layer.grad, layer.memory
            assert memory is not None
        where = _UNCUT
        if slot is not None or place is not None:
            where = _PLACE.pack(0 if slot is None else start + 8 * slot, *(_WHOLE if place is None else place))
        row = _LAYER.pack(*memory, size // memory.slices, corrections(count), seed, where)
        rows[grad.dtype].append(row)
        kept.append(layer)
    return Packed(kept, rows, sums)


def _call(function: str, packed: Packed, hyper: Hyper, scales: Scales) -> None:
    numbers = _numbers(hyper, scales)
    for dtype, rows in packed.rows.items():
        variant = _variant(packed.layers[0], dtype, hyper, cut=function != "step")
        fractions = _fractions()[0] if eightbit.EIGHT_BITS in variant else None
        kernel = _kernel(variant, function)
        assert not isinstance(kernel, str), kernel  # as choose has asked what is missing
        kernel(b"".join(rows), len(rows), numbers, fractions, torch.get_num_threads())


def _note_written(packed: Packed) -> None:
    """As in-place operations do, so that a backward pass of what was computed before the step raises."""
    torch.autograd.graph.increment_version([layer.param for layer in packed.layers])


takes = is_walkable


def all_within(tensors: Sequence[Tensor], limit: Callable[[torch.dtype], float]) -> bool | None:
    """Whether no tensor has a NaN or an entry beyond the limit of its dtype; None if the kernel cannot tell."""
    limits: dict[torch.dtype, bytes] = {}
    rows = []
    for t in tensors:
        dtype = t.dtype
        if (of_dtype := limits.get(dtype)) is None:
            if dtype not in _TYPES:
                return None
            of_dtype = limits[dtype] = _LIMIT.pack(dtype.itemsize, _bits(limit(dtype), dtype))
        if not (t.is_cpu and ((type(t) in PLAIN and t.is_contiguous()) or is_plain(t))):
            return None
        address, size = t.data_ptr(), t.numel()
        if address == 0 < size:  # zeros without memory
            return None
        rows.append(_VECTOR.pack(address, size, of_dtype))
    judge = _judge()
    return None if isinstance(judge, str) else bool(judge(b"".join(rows), len(rows), torch.get_num_threads()))


def _numbers(hyper: Hyper, scales: Scales) -> bytes:
    low, high = (0.0, math.inf) if hyper.trust_clip is None else hyper.trust_clip
    least, most = (0.0, math.inf) if hyper.ratio_clip is None else hyper.ratio_clip
    return _HYPER.pack(
        (-1.0 if hyper.maximize else 1.0) * (1.0 if scales.grad is None else scales.grad.item()),
        1.0 + eq.gain(hyper.alpha, hyper.beta1),
        1.0 - hyper.beta1,
        1.0 - hyper.beta2,
        1.0 - hyper.beta3,
        hyper.eps,
        hyper.decay_in_r,
        float(hyper.lr),
        hyper.trust_eps,
        low,
        high,
        float(hyper.remaining),
        least,
        most,
    )


def variants(layers: Sequence[Layer], hyper: Hyper) -> set[Variant]:
    """What steps the layers of a bucket, which share all dtypes but perhaps their gradients'."""
    cut = bool(layers and layers[0].slot is not None)
    return {_variant(layers[0], dtype, hyper, cut=cut) for dtype in {layer.grad.dtype for layer in layers}}


def missing(wanted: Iterable[Variant] = ()) -> str | None:
    """Why kernels are not available, the one that judges gradients or those wanted; None if all are."""
    kernels = chain((_judge(),), (_kernel(one, name) for one in wanted for name in _functions(one)))
    return next((kernel for kernel in kernels if isinstance(kernel, str)), None)


def _functions(variant: Variant) -> tuple[str, ...]:
    return ("begin", "finish") if variant.cut else ("step",)


def _variant(layer: Layer, grad: torch.dtype, hyper: Hyper, *, cut: bool) -> Variant:
    return Variant(
        layer.param.dtype,
        grad,
        eightbit.kind(layer.exp_avg),
        eightbit.kind(layer.exp_avg_sq),
        None if layer.explore_ema is None else eightbit.kind(layer.explore_ema),
        hyper.trust_ratio,
        hyper.stochastic_rounding and layer.param.dtype == torch.bfloat16,
        cut,
        cut and hyper.late,
    )


@functools.cache
def _kernel(variant: Variant, function: str) -> _Kernel:
    param, grad, exp_avg, exp_avg_sq, explore_ema, trust_ratio, stochastic_rounding, cut, late = variant
    macros = {
        "PARAM": _TYPES[param],
        "GRAD": _TYPES[grad],
        "EXP_AVG": _type(exp_avg, signed=True),
        "EXP_AVG_SQ": _type(exp_avg_sq, signed=False),
        "EXPLORE_EMA": _type(explore_ema or param, signed=True),
        "REAL": _TYPES[compute_dtype(param)],
        "EXPLORE": int(explore_ema is not None),
        "TRUST_RATIO": int(trust_ratio),
        "STOCHASTIC_ROUNDING": int(stochastic_rounding),
        "CUT": int(cut),
        "LATE": int(late),
        "SHARE": eightbit.BLOCK,
        "MARGIN": eightbit.MARGIN,
    }
    arguments = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
    return _load("kernels.cpp", function, macros, arguments)


@functools.cache
def _judge() -> _Kernel:
    return _load("finite.cpp", "all_within", {}, (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64))


def _load(file: str, function: str, macros: Mapping[str, object], arguments: tuple[Any, ...]) -> _Kernel:
    try:
        return toolchain.load(file, function, macros, arguments)
    except RuntimeError as error:
        return str(error)


def _type(stored: _Stored, *, signed: bool) -> str:
    return f"eight_bits<{int(signed)}>" if isinstance(stored, str) else _TYPES[stored]


@functools.cache
def _fractions() -> tuple[bytes, object]:
    """The addresses of the tables of 8 bits, unsigned and signed, and what has to be kept so that they stay valid."""
    tables = [t for signed in (False, True) for t in eightbit.tables(signed, torch.device("cpu"))]
    return _FRACTIONS.pack(*(t.data_ptr() for t in tables)), tables


@functools.cache
def _bits(limit: float, dtype: torch.dtype) -> int:
    """The largest number of a dtype that is at most ``limit``, as the integer that has its bits."""
    number = torch.tensor(min(limit, torch.finfo(dtype).max), dtype=dtype, device="cpu")
    if number.item() > limit:  # rounded up
        number = torch.nextafter(number, torch.zeros_like(number))
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(number.view(integers[dtype.itemsize]).item())
