"""Tensors that are stored in fewer bits than they are computed in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from thalweg.kernels import Hyper, Layer, eightbit
from thalweg.sharding.places import Place

StateDtype: TypeAlias = "torch.dtype | str | Mapping[str, torch.dtype | str | None] | None"
NARROW: frozenset[torch.dtype | str] = frozenset({torch.bfloat16, eightbit.EIGHT_BITS})
_BY_NAME = {str(dtype)[skip:]: dtype for dtype in (torch.float32, torch.float64, torch.bfloat16) for skip in (0, 6)}
PARAM, EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA = "param", "exp_avg", "exp_avg_sq", "explore_ema"
_SEEDS = {PARAM: 0, EXP_AVG: 1, EXP_AVG_SQ: 2, EXPLORE_EMA: 3}  # what rounds each of a layer's tensors is independent


def as_dtype(given: torch.dtype | str | None) -> torch.dtype | str | None:
    """A dtype for its name, as groups have it; "8bit" and None as they are."""
    return _BY_NAME.get(given, given) if isinstance(given, str) else given


def stored_as(state_dtype: StateDtype, name: str) -> torch.dtype | str | None:
    """What the option ``state_dtype`` says of one buffer: a dtype, "8bit" or None."""
    return as_dtype(state_dtype.get(name) if isinstance(state_dtype, Mapping) else state_dtype)


def is_narrow(state_dtype: StateDtype, which: Collection[torch.dtype | str] = NARROW) -> bool:
    """Whether ``state_dtype`` asks for a buffer in fewer bits than float32, which is rounded stochastically."""
    wanted = state_dtype.values() if isinstance(state_dtype, Mapping) else (state_dtype,)
    return any(as_dtype(dtype) in which for dtype in wanted)


def wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``: itself if it is so typed, else a copy."""
    if eightbit.is_8bit(x):
        x = eightbit.read(x)
    return x if x.dtype == dtype else x.to(dtype)


def store(layer: Layer, name: str, value: Tensor, hyper: Hyper) -> None:
    """Write one of the layer's tensors; narrow state is rounded stochastically, a parameter where asked for."""
    target: Tensor = getattr(layer, name)
    if eightbit.is_8bit(target):
        eightbit.write(target, value, noise(value, layer.seed + _SEEDS[name], layer.start, layer.place))
    elif target.dtype == torch.bfloat16 and (name != PARAM or hyper.stochastic_rounding):
        target.copy_(stochastic_round(value, layer.seed + _SEEDS[name], layer.start, layer.place))
    else:
        target.copy_(value)


def stochastic_round(x: Tensor, seed: int | Tensor, start: int = 0, place: Place | Tensor | None = None) -> Tensor:
    """Float32 values rounded to neighbours in bfloat16, up or down with probabilities that keep the mean.

    A bfloat16 is the upper half of a float32: adding 16 random bits below it carries with the right probability.
    Small updates then survive on average where rounding to nearest would lose every one of them. The bits are a hash
    of the seed and of the element's position, counted from ``start``, so that all backends round alike; of a shard, of
    the position in the whole, which ``place`` says.

    >>> x = torch.full((1000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next bfloat16
    >>> rounded = stochastic_round(x, seed=0)
    >>> rounded.unique().tolist(), bool((rounded.mean() - x[0]).abs() < 4e-4)
    ([1.0, 1.0078125], True)
    """
    bits = noise(x, seed, start, place)
    x = x.float()
    rounded = ((x.contiguous().view(torch.int32) + bits) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def noise(x: Tensor, seed: int | Tensor, start: int, place: Place | Tensor | None = None) -> Tensor:
    """16 random bits for each element: a 32-bit hash of seed and position, two rounds of multiply and xor-shift."""
    # Conversion and products wrap; shifts keep the sign, and are masked.
    h = _positions(x, start, place).mul_(0x9E3779B1).add_(seed).to(torch.int32)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        h ^= (h >> shift) & ((1 << 32 - shift) - 1)
        h *= factor
    h ^= (h >> 15) & ((1 << 17) - 1)
    return h & 0xFFFF


def _positions(x: Tensor, start: int, place: Place | Tensor | None) -> Tensor:
    """The number of each element in its layer, in the shape of what is here of it."""
    if isinstance(place, Tensor):
        return place.flatten()[start : start + x.numel()].to(x.device, copy=True).view(x.shape)
    index = torch.arange(start, start + x.numel(), device=x.device)
    if place is not None:
        runs = index.div(place.run, rounding_mode="floor")
        index = index.add_(runs.mul_(place.stride - place.run)).add_(place.start)
    return index.view(x.shape)
