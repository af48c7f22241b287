"""State in 8 bits: blocks of 256 numbers, each a scale and one of 256 fractions of it, in torchao's tensors.

The fractions are those of dynamic quantization (arXiv 2110.02861), with a sign for moving averages of the gradient and
without for those of its square: down to a tenth of the largest number of a block in steps of 1.4 or 0.7 % of it, then
in finer but relatively wider ones over six decades. A tensor holds them as ``codes``, ``scale`` and the table ``qmap``,
1 + 4/256 bytes a number and 1 KiB.

It reads as torchao has it, ``qmap[codes] * scale``. What is written differs in three ways.

- Rounding is stochastic. To nearest, an average that moves by a hundredth of its distance stands still where that is
  less than half a step: with β1 = 0.99, b of a gradient that turns round would stay at the old one.
- The scale is the number of largest magnitude with its sign, and not its magnitude: the fractions have a 1 and no -1.
  So this number is kept, and what has been read and not changed is written back bit for bit.
- A mean of squares that is not 0 does not become 0, or Adam's direction would divide by ε alone.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor

from thalweg.kernels import is_fake
from thalweg.sharding import is_sharded, local, sharded_like, zeros_like
from thalweg.sharding.places import is_whole_blocks, place_of
from thalweg.torch_private import below_subclasses, local_tensor, outside_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from thalweg.kernels import Layer

EIGHT_BITS = "8bit"
BLOCK = 256
LEAST = 4096
"""Parameters of fewer elements keep float32, and so do those that are no whole number of blocks, as in torchao.

Both are said of the whole parameter, however it is sharded; its blocks are the same on any number of ranks.
"""
MARGIN = 7
"""Of 2**16 in a step. A fraction that has been read is off by its division, and by less: that must not move it."""


@functools.cache
def torchao() -> ModuleType:
    """Torchao's module of 8-bit tensors, which it takes seconds to import, with two operations that it lacks.

    Raises:
        ImportError: torchao is not installed, or one before 0.17, whose tensors have one dtype only.
    """
    try:
        from torchao.optim import subclass_8bit
    except ImportError as error:
        _refuse(error)
    if "dtype" not in inspect.signature(subclass_8bit.OptimState8bit.zeros).parameters:
        _refuse("the one installed is older than 0.17")
    _complete(subclass_8bit.OptimState8bit)
    with (
        below_subclasses(),
        _usual_defaults(),
    ):  # it keeps its fractions, which are to be real also if the first are fake
        for signed in (False, True):
            subclass_8bit.OptimState8bit.zeros((BLOCK,), signed)
    return cast("ModuleType", subclass_8bit)


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Inside, new tensors are float32 ones on the CPU, as torchao takes for granted, whatever the user has set."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _refuse(why: ImportError | str) -> NoReturn:
    text = f"state_dtype='8bit' needs torchao>=0.17, pip install 'thalweg[lowbit]' ({why})"
    raise ImportError(text) from (why if isinstance(why, ImportError) else None)


def _complete(cls: Any) -> None:
    """Clones, for copies of optimizers and of state dicts; and parts, which share memory if they are whole blocks."""

    @cls.implements(torch.ops.aten.clone.default)  # type: ignore[untyped-decorator]
    def clone(func: Any, types: Any, args: Any, kwargs: Any) -> Tensor:
        x = args[0]
        parts = (part.clone() for part in (x.codes, x.scale, x.qmap))
        return cast("Tensor", cls(*parts, x.signed, dtype=x.dtype))

    @cls.implements(torch.ops.aten.split.Tensor)  # type: ignore[untyped-decorator]
    def split(func: Any, types: Any, args: Any, kwargs: Any) -> list[Tensor]:
        x, size = args[:2]
        if x.ndim != 1 or size % x.block_size != 0:  # as a loader spreads it over ranks: what they keep, they round
            return list(torch.split(read(x), *args[1:], **kwargs))
        parts = zip(x.codes.split(size), x.scale.split(size // x.block_size), strict=True)
        return [cls(codes, scale, x.qmap, x.signed, dtype=x.dtype) for codes, scale in parts]


def is_8bit(x: Tensor) -> bool:
    """Whether a tensor, or what a DTensor has of it here, is stored in 8 bits; its dtype is an appearance."""
    return hasattr(local_tensor(x), "codes")


def any_8bit(layer: Layer) -> bool:
    """Whether a layer has state in 8 bits."""
    return any(is_8bit(t) for t in (layer.exp_avg, layer.exp_avg_sq, layer.explore_ema) if t is not None)


def kind(x: Tensor) -> torch.dtype | str:
    """What a tensor is stored as: its dtype, or "8bit"; of a DTensor, whose shards may differ, its appearance."""
    return EIGHT_BITS if type(x) is not Tensor and hasattr(x, "codes") else x.dtype


def check(of: str, x: Any, *, signed: bool) -> None:
    """Raise ``ValueError`` unless the parts of 8-bit state belong together, and are those that ``of`` is stored in."""
    parts = (x.codes, x.scale, x.qmap)
    fits = x.codes.shape == x.shape and x.block_size == BLOCK and x.scale.shape == (x.numel() // BLOCK,)
    fits &= [part.dtype for part in parts] == [torch.uint8, torch.float32, torch.float32]
    if not (fits and x.signed == signed and x.numel() % BLOCK == 0 and all(t.device == x.device for t in parts)):
        raise ValueError(
            f"{of} must be 8-bit state {'with' if signed else 'without'} a sign, in whole blocks of {BLOCK}, got "
            f"{'a' if x.signed else 'no'} sign, shape {tuple(x.shape)}, codes of shape {tuple(x.codes.shape)} and "
            f"{x.scale.numel()} scales of {x.scale.dtype}"
        )


@outside_graphs
def zeros(p: Tensor, *, signed: bool) -> Tensor:
    """Zeros in the shape and the shards of ``p``: in 8 bits if :func:`takes`, else in float32."""
    if not takes(p):
        return zeros_like(p, torch.float32)
    here = local(p)
    with _usual_defaults():
        x = torchao().OptimState8bit.zeros(here.shape, signed, BLOCK, here.device, torch.float32)
    x.codes.fill_(x.qmap.abs().argmin())  # the code of 0, as if written
    return sharded_like(x, p)


def takes(p: Tensor) -> bool:
    """Whether what is here of a parameter has its state in 8 bits: the whole has blocks, and this some of them."""
    if p.numel() < LEAST or p.numel() % BLOCK != 0:
        return False
    return not is_sharded(p) or (local(p).numel() > 0 and is_whole_blocks(place_of(p), BLOCK))


def read(x: Tensor) -> Tensor:
    """The numbers of 8-bit state, in float32: what torchao's ``dequantize`` gives, in half the memory."""
    here: Any = local(x)
    numbers = here.qmap.index_select(0, here.codes.reshape(-1).int())
    numbers.view(-1, BLOCK).mul_(here.scale.unsqueeze(1))
    return sharded_like(numbers.view(here.shape), x)


def write(target: Tensor, value: Tensor, noise: Tensor) -> None:
    """Round to one of the two nearest fractions of each block's number of largest magnitude, as 16 random bits say.

    ``noise`` is written over.
    """
    x: Any = local(target)
    blocks = local(value).to(torch.float32).reshape(-1, BLOCK)
    low, high = blocks.aminmax(dim=1)
    scale = torch.where(high >= -low, high, low)
    fractions = blocks / torch.where(scale == 0.0, 1.0, scale).unsqueeze(1)
    x.codes.copy_(_round(fractions.view(-1), noise.reshape(-1), x.signed).view(x.codes.shape))
    x.scale.copy_(scale)


def quantize(x: Tensor, *, signed: bool) -> Tensor:
    """Float32 numbers in 8 bits, rounded to nearest; those that :func:`read` gave come back bit for bit."""
    found = zeros(x, signed=signed)
    if is_8bit(found):
        write(found, x, torch.full(local(x).shape, 1 << 15, dtype=torch.int32, device=x.device))
    return found if is_8bit(found) else x


def _round(y: Tensor, noise: Tensor, signed: bool) -> Tensor:
    """The codes of fractions, which are written over."""
    made = tables.__wrapped__ if is_fake(y) else tables  # fake ones are not to be kept
    qmap, per_step, below = made(signed, y.device)
    code = below.index_select(0, (y.view(torch.int32) >> 16).add_(1 << 15))
    code.add_(y >= qmap[1:].index_select(0, code)).clamp_(max=254)
    lost = None if signed else (code == 0) & (y > 0.0)
    y.sub_(qmap.index_select(0, code))
    y.mul_(per_step.index_select(0, code))
    up = noise.add_(MARGIN) < y  # and no sum of a product, which kernels may round once or twice
    return code.add_(up if lost is None else up | lost)


@functools.cache
def tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The fractions; what counts the steps between them in noise; for the upper half of every float a code.

    That is the last whose fraction is not above any float with this half, from -32768 on; for some of these floats the
    next one is not, either.
    """
    with _usual_defaults():
        qmap: Tensor = torchao().OptimState8bit.zeros((BLOCK,), signed).qmap
        halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << 16
    least = torch.where(halves < 0, halves | 0xFFFF, halves).view(torch.float32)
    below = torch.bucketize(least, qmap, right=True, out_int32=True).sub_(1).clamp_(0, 254)
    per_step = qmap.diff().reciprocal().mul_((1 << 16) + 2 * MARGIN)
    return qmap.to(device), per_step.to(device), below.to(device)
