"""How the equations are executed: the same results, at different speeds.

A backend is a module with ``step(layers, hyper, grad_scale)``, which updates the layers of one bucket in place.
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


class Layer(NamedTuple):
    """One parameter with its gradient and state. Complex tensors come as real views with a last axis of 2."""

    param: Tensor
    grad: Tensor
    step: Scalar
    exp_avg: Tensor
    exp_avg_sq: Tensor
    explore_ema: Tensor | None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a parameter of ``dtype`` is updated, and by default keeps its state: float32 at least.

    >>> compute_dtype(torch.bfloat16), compute_dtype(torch.complex128)
    (torch.float32, torch.complex128)
    """
    return torch.promote_types(dtype, torch.float32)
