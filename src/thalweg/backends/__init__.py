"""How the equations are executed: the same results, at different speeds.

A backend is a module with ``step(layers, hyper, scales)``, which updates the layers of one bucket in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.equations import Scalar


@dataclass(frozen=True, slots=True)
class Hyper:
    """The hyperparameters of one step of ALTO, in the notation of :mod:`thalweg.equations`."""

    lr: Scalar
    alpha: float
    beta1: float
    beta2: float
    beta3: float
    eps: float
    trust_eps: float
    weight_decay: float
    trust_ratio: bool
    trust_clip: tuple[float, float] | None
    maximize: bool
    stochastic_rounding: bool


class Scales(NamedTuple):
    """What one step decides on the device, as 0-d tensors.

    ``grad`` multiplies every gradient. ``go`` is 1, or 0 where nothing may change because a gradient is not finite.
    ``None`` is a 1 that costs nothing.
    """

    grad: Tensor | None = None
    go: Tensor | None = None


class Layer(NamedTuple):
    """One parameter with its gradient and state. Complex tensors come as real views with a last axis of 2.

    ``norm_dims`` are the axes, counted from the front, over which its norm is taken (None: all of them); ``seed`` is
    that of its stochastic rounding.
    """

    param: Tensor
    grad: Tensor
    step: Scalar
    exp_avg: Tensor
    exp_avg_sq: Tensor
    explore_ema: Tensor | None
    norm_dims: tuple[int, ...] | None
    seed: int


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter of ``dtype`` is updated, and by default keeps its state: float32 at least.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.complex128)
    (torch.float32, torch.complex128)
    """
    return torch.promote_types(dtype, torch.float32)


def store(layer: Layer, theta: Tensor, hyper: Hyper) -> None:
    """Write the updated parameter, rounded stochastically if it is bfloat16 and asked for."""
    if hyper.stochastic_rounding and layer.param.dtype == torch.bfloat16:
        theta = stochastic_round(theta, torch.Generator(theta.device).manual_seed(layer.seed))
    layer.param.copy_(theta)


def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 values rounded to neighbours in bfloat16, up or down with probabilities that keep the mean.

    A bfloat16 is the upper half of a float32: adding 16 random bits below it carries with the right probability.
    Small updates then survive on average where rounding to nearest would lose every one of them.

    >>> x = torch.full((1000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next bfloat16
    >>> rounded = stochastic_round(x, torch.Generator().manual_seed(0))
    >>> rounded.unique().tolist(), bool((rounded.mean() - x[0]).abs() < 4e-4)
    ([1.0, 1.0078125], True)
    """
    noise = torch.randint(0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    rounded = ((x.contiguous().view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)
