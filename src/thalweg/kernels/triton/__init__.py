r"""Multi-tensor kernels in Triton: all layers in three launches, or in one where the trust ratio is off.

.. math::
    h &= g + c\,(g - b), \quad b \mathrel{+}= (1-β_1)(g - b), \quad m \mathrel{+}= (1-β_2)(h - m), \quad
    v \mathrel{+}= (1-β_3)(h^2 - v) \\
    r &= \frac{m / (1-β_2^k)}{\sqrt{v / (1-β_3^k)} + ε_1} + λθ, \quad
    θ \mathrel{-}= η\,r\,\frac{φ(‖θ‖)}{‖r‖ + ε_2 φ(‖θ‖)}

1. ``sweep`` reads θ, g, b, m, v, moves the state, and leaves Σθ² and Σr² of every chunk of every layer;
2. ``adapt`` adds them up, layer by layer, to the layer's step size;
3. ``sweep`` reads θ, m, v again, the last chunk first since that is what the cache still holds, and moves θ.

That is 48 bytes per parameter in float32, of which 12 may come from the cache. State that is stored in fewer bits than
it is computed in is left alone by the first pass and moved by the second: r is that of the unrounded moments, as in the
other backends. A block has whole runs of the numbers that share a scale in 8 bits. Sums are taken in a fixed order: a
step is a function of its inputs, bit for bit.

A table on the device has the addresses of the layers, and which layer a program works on. It stays there from step to
step, and is sent again, without waiting for it, when an address has changed. Nothing is ever read back.

Bandwidth is the bound. On an H100, with 27 GB/s and 30 KB to be kept in flight for each multiprocessor: a program moves
64 KiB of each tensor in blocks of 8 elements for each of its 128 threads, loaded 16 bytes at a time; at 72 registers a
thread, which is what the first pass compiles to, 7 programs share a multiprocessor and may have 140 KB in flight. With
state in 8 bits the second pass has up to 118 registers, in blocks of half the size. That is reckoned, not measured: the
kernels have been compiled and interpreted, and have yet to run on a GPU.

What a step costs beside them depends on the number of parameters by torch's multi-tensor operations alone, which launch
once for every hundred tensors or so: one to judge the gradients, one to count the steps, one for ``max_grad_norm``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from thalweg import equations as eq
from thalweg.kernels import Hyper, Layer, Scales, compute_dtype, eightbit
from thalweg.kernels.addresses import is_walkable, with_walkable_gradient
from thalweg.kernels.norms import parts_of
from thalweg.kernels.pieces import Scratch
from thalweg.kernels.rounding import NARROW
from thalweg.kernels.triton.address_tables import COLUMNS, Row, tables
from thalweg.kernels.triton.kernels import adapt, add_up, sweep, touch
from thalweg.sharding.places import Place

CHUNK = 16384
"""Elements for one program; a whole number of blocks."""
_BLOCK = 1024
_BLOCK_OF_8_BITS = 512  # rounding takes more registers
_WARPS = 4
_ALIGNMENT = 16  # bytes of the widest load
_TYPES: dict[torch.dtype | str, tl.dtype] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    eightbit.EIGHT_BITS: tl.uint8,
}


def step(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch) -> None:
    """One step of ALTO on all layers, in place; they share device, dtype and whether they have ``explore_ema``.

    Parameters are float64, float32, float16 or bfloat16, gradients and each of the buffers any of these; arithmetic is
    in float64 if the parameter is, else in float32. There are three launches, or one without the trust ratio, for each
    dtype of gradients, and as many again for tensors whose addresses are no multiples of 16 bytes. A layer's tensors
    may have any one dense layout, such as channels-last; a gradient laid out otherwise is copied first.

    With ``norm_dims``, slices of a contiguous parameter over its last axes are layers of their own, at no cost. Norms
    over other axes, other layouts, subclasses of Tensor, in 8 bits slices that share a scale and parameters that are
    not contiguous are not for :func:`takes`, nor are, where something is rounded by its place in the whole, shards of
    several runs.

    In a CUDA graph, ``step``, ``lr`` and ``scales`` may change between replays where they are tensors on the device;
    numbers, among them the seeds of stochastic rounding, are those of the capture. A step before it has to have
    compiled the kernels.
    """
    for sweeps in _prepared(layers, hyper, scales):
        with sweeps.on_device():
            if hyper.trust_ratio:
                partials = sweeps.measure(keep=sweeps.exact)
                sweeps.move(sweeps.rates(partials), fresh=not sweeps.exact)
            else:
                sweeps.launch(None, sweeps.lr_tensor, MEASURE=False, FRESH=True, KEEP=True)
        sweeps.note_written()


def begin(layers: Sequence[Layer], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> list[_Sweeps]:
    """The first half of :func:`step` for layers whose norms reach over ranks: their squares here, to ``sums``."""
    begun = _prepared(layers, hyper, scales)
    for sweeps in begun:
        with sweeps.on_device():
            partials = sweeps.measure(keep=sweeps.exact and not hyper.late)
            sweeps.add_up(partials, sums)
    return begun


def finish(begun: list[_Sweeps], hyper: Hyper, scales: Scales, scratch: Scratch, sums: Tensor) -> None:
    """The second half, ``sums`` being those of all ranks."""
    for sweeps in begun:
        with sweeps.on_device():
            sweeps.move(sweeps.rates(None, sums), fresh=hyper.late or not sweeps.exact)
        sweeps.note_written()


def _prepared(layers: Sequence[Layer], hyper: Hyper, scales: Scales) -> list[_Sweeps]:
    """The layers that have elements, those of one kind together."""
    groups: dict[_Kind, list[Layer]] = defaultdict(list)
    for layer in map(with_walkable_gradient, (layer for layer in layers if layer.param.numel() > 0)):
        groups[_kind(layer)].append(layer)
    return [_Sweeps(kind, group, hyper, scales) for kind, group in groups.items()]


def takes(layer: Layer) -> bool:
    """Whether kernels can walk the layer, and read its number of the step if that is a tensor."""
    step = layer.step
    place = layer.place
    one_run = place is None or (isinstance(place, Place) and place.run >= layer.param.numel())
    return (
        is_walkable(layer)
        and one_run
        and not (isinstance(step, Tensor) and (step.device != layer.param.device or step.dtype != torch.float32))
    )


def probe(device: torch.device) -> None:
    """Launch a kernel that does next to nothing; what Triton raises where it cannot, it raises here."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        touch[(1,)](torch.empty(1, device=device))


class _Kind(NamedTuple):
    """What the kernels are compiled for."""

    param: torch.dtype
    grad: torch.dtype
    state: tuple[torch.dtype | str, ...]
    explore: bool
    counted: bool
    aligned: bool


def _kind(layer: Layer) -> _Kind:
    param, grad, m, v, b = layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, layer.explore_ema
    tensors = (param, grad, m, v) if b is None else (param, grad, m, v, b)
    memory = layer.memory
    assert memory is not None
    starts = (memory.param, memory.grad, memory.exp_avg, memory.exp_avg_sq, memory.explore_ema)
    size = param.numel() // memory.slices
    aligned = not any(start % _ALIGNMENT for start in starts) and (
        memory.slices == 1 or all(size * t.element_size() % _ALIGNMENT == 0 for t in tensors)
    )
    state = (eightbit.kind(m), eightbit.kind(v), compute_dtype(param.dtype) if b is None else eightbit.kind(b))
    return _Kind(param.dtype, grad.dtype, state, b is not None, isinstance(layer.step, Tensor), aligned)


class _Sweeps:
    """All launches for layers of one kind."""

    def __init__(self, kind: _Kind, layers: list[Layer], hyper: Hyper, scales: Scales) -> None:
        first = layers[0]
        device, dtype = first.param.device, compute_dtype(kind.param)
        self.layers, self.hyper, self.device, self.dtype = layers, hyper, device, dtype
        stochastic = hyper.stochastic_rounding and kind.param == torch.bfloat16
        seed = first.seed if stochastic or not NARROW.isdisjoint(kind.state) else None
        in_8_bits = eightbit.EIGHT_BITS in kind.state
        count = 0 if isinstance(first.step, Tensor) else int(first.step)
        rows = tuple(_row(layer, count, seed) for layer in layers)
        state_sizes = [1 if isinstance(t, str) else t.itemsize for t in kind.state]
        sizes = (kind.param.itemsize, kind.grad.itemsize, *state_sizes, 0, 0, 0)
        self.lines, self.work = tables(rows, sizes, CHUNK, device)
        self.lr_tensor: Tensor | None = None
        if isinstance(hyper.lr, Tensor) and hyper.lr.device.type == device.type:
            self.lr_tensor, self.lr = hyper.lr.to(device, non_blocking=True), 0.0
        else:  # a number, or one that the host can read without waiting
            self.lr = float(hyper.lr)
        self.decay = hyper.weight_decay if hyper.decoupled_decay else 0.0
        self.launch = partial(
            sweep[len(self.work),],
            self.lines,
            self.work,
            proceed=scales.proceed,
            grad_scale=scales.grad,
            signed=eightbit.tables(True, device) if in_8_bits else None,
            unsigned=eightbit.tables(False, device) if in_8_bits else None,
            lr=self.lr,
            step=float(count),
            seed=(seed or 0) % 2**32,
            sign=-1.0 if hyper.maximize else 1.0,
            gain=eq.gain(hyper.alpha, hyper.beta1),
            weight1=1.0 - hyper.beta1,
            weight2=1.0 - hyper.beta2,
            weight3=1.0 - hyper.beta3,
            log_beta2=_log2(hyper.beta2 if hyper.bias_correction else 0.0),
            log_beta3=_log2(hyper.beta3 if hyper.bias_correction else 0.0),
            eps=hyper.eps,
            weight_decay=hyper.decay_in_r,
            decay=self.decay,
            decay_lr=self.lr_tensor if hyper.decoupled_decay else None,
            PARAM=_TYPES[kind.param],
            GRAD=_TYPES[kind.grad],
            EXP_AVG=_TYPES[kind.state[0]],
            EXP_AVG_SQ=_TYPES[kind.state[1]],
            EXPLORE_EMA=_TYPES[kind.state[2]],
            DTYPE=_TYPES[dtype],
            EXPLORE=kind.explore,
            COUNTED=kind.counted,
            STOCHASTIC=stochastic,
            ALIGNMENT=_ALIGNMENT if kind.aligned else 1,
            ADAPT=hyper.trust_ratio,
            CHUNK=CHUNK,
            BLOCK=_BLOCK_OF_8_BITS if in_8_bits else _BLOCK,
            num_warps=_WARPS,
        )
        self.exact = not any(isinstance(t, str) or torch.promote_types(t, dtype) != t for t in kind.state)

    def on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def measure(self, *, keep: bool) -> Tensor:
        """The sums of squares of every chunk; the state moved, if it is to be kept."""
        partials = torch.empty(2 * len(self.work), dtype=torch.float64, device=self.device)
        self.launch(partials, None, MEASURE=True, FRESH=True, KEEP=keep)
        return partials

    def add_up(self, partials: Tensor, sums: Tensor) -> None:
        """Those of every layer, to ``sums``."""
        sizes = {"PARTS": parts_of(self.dtype), "CHUNK": CHUNK, "BLOCK": _BLOCK, "num_warps": _WARPS}
        add_up[self._lines,](self.lines, partials, sums, self._places(), **sizes)

    def rates(self, partials: Tensor | None, sums: Tensor | None = None) -> Tensor:
        """The step size of every layer, by the squares of its chunks or, over ranks, by ``sums``."""
        rates = torch.empty(self._lines, dtype=torch.float64, device=self.device)
        low, high = (0.0, math.inf) if self.hyper.trust_clip is None else self.hyper.trust_clip
        adapt[self._lines,](
            self.lines,
            partials,
            sums,
            None if sums is None else self._places(),
            rates,
            self.lr_tensor,
            self.lr,
            low,
            high,
            self.hyper.trust_eps,
            *((0.0, math.inf) if self.hyper.ratio_clip is None else self.hyper.ratio_clip),
            self.decay,
            PARTS=parts_of(self.dtype),
            CHUNK=CHUNK,
            BLOCK=_BLOCK,
            num_warps=_WARPS,
        )
        return rates

    def move(self, rates: Tensor, *, fresh: bool) -> None:
        """The parameters; and the state, if it has not moved yet."""
        self.launch(None, rates, MEASURE=False, FRESH=fresh, KEEP=fresh)

    def note_written(self) -> None:
        """As in-place operations do, so that a backward pass of what was computed before the step raises."""
        torch.autograd.graph.increment_version([layer.param for layer in self.layers])

    @property
    def _lines(self) -> int:
        return len(self.lines) // COLUMNS

    def _places(self) -> Tensor:
        """Where the squares of every line go."""
        width = 2 * parts_of(self.dtype)
        rows = ((layer.slot or 0, layer.memory.slices) for layer in self.layers if layer.memory is not None)
        return torch.tensor([slot + width * k for slot, slices in rows for k in range(slices)], device=self.device)


def _row(layer: Layer, count: int, seed: int | None) -> Row:
    """What the tables say of a layer; numbers of steps and seeds are counted from those of the launch."""
    assert layer.memory is not None
    *addresses, slices = layer.memory
    step = layer.step.data_ptr() if isinstance(layer.step, Tensor) else int(layer.step) - count
    seed = 0 if seed is None else (layer.seed - seed) % 2**32
    start = layer.place.start if isinstance(layer.place, Place) else 0
    return (*addresses, step, seed, start, layer.param.numel(), slices)


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0.0 else -math.inf
