"""Tensors that are stored in fewer bits than they are computed in."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.backends import Hyper, Layer

PARAM, EXP_AVG, EXP_AVG_SQ, EXPLORE_EMA = "param", "exp_avg", "exp_avg_sq", "explore_ema"
_SEEDS = {PARAM: 0, EXP_AVG: 1, EXP_AVG_SQ: 2, EXPLORE_EMA: 3}  # what rounds each of a layer's tensors is independent


def wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``: itself if it is so typed, else a copy."""
    if hasattr(x, "codes"):  # 8-bit state, whose dtype is an appearance
        x = x.dequantize()
    return x if x.dtype == dtype else x.to(dtype)


def store(layer: Layer, name: str, value: Tensor, hyper: Hyper) -> None:
    """Write one of the layer's tensors; state in bfloat16 is rounded stochastically, a parameter where asked for."""
    target: Tensor = getattr(layer, name)
    if target.dtype == torch.bfloat16 and (name != PARAM or hyper.stochastic_rounding):
        value = stochastic_round(value, layer.seed + _SEEDS[name], layer.start)
    target.copy_(value)


def stochastic_round(x: Tensor, seed: int | Tensor, start: int = 0) -> Tensor:
    """Float32 values rounded to neighbours in bfloat16, up or down with probabilities that keep the mean.

    A bfloat16 is the upper half of a float32: adding 16 random bits below it carries with the right probability.
    Small updates then survive on average where rounding to nearest would lose every one of them. The bits are a hash
    of the seed and of the element's position, counted from ``start``, so that all backends round alike.

    >>> x = torch.full((1000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next bfloat16
    >>> rounded = stochastic_round(x, seed=0)
    >>> rounded.unique().tolist(), bool((rounded.mean() - x[0]).abs() < 4e-4)
    ([1.0, 1.0078125], True)
    """
    x = x.float()
    index = torch.arange(start, start + x.numel(), device=x.device).view(x.shape)
    rounded = ((x.contiguous().view(torch.int32) + _noise(index, seed)) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def _noise(index: Tensor, seed: int | Tensor) -> Tensor:
    """16 random bits for each index: a 32-bit hash, two rounds of multiply and xor-shift, in 64-bit arithmetic."""
    mask = 0xFFFFFFFF
    h = (index * 0x9E3779B1 + seed) & mask
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        h = ((h ^ (h >> shift)) * factor) & mask
    h = h ^ (h >> 15)
    return (h & 0xFFFF).to(torch.int32)
