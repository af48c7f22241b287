"""A number with its error bars, and the random vectors that the estimators share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import check_integer


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate.

    Attributes:
        value: the mean of what was drawn.
        standard_error: of the value, from the spread of what was drawn (random vectors or perturbations; batches, for
            :func:`~thalweg.landscape.batch_sharpness`). 0 if the value is exact.
        draws: how many were drawn.
    """

    value: float
    standard_error: float
    draws: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def mean_of(values: Tensor) -> Estimate:
    """The mean of independent values.

    >>> print(mean_of(torch.tensor([1.0, 3.0])))
    2 ± 1
    """
    return Estimate(values.mean().item(), (values.std() / math.sqrt(len(values))).item(), len(values))


def check_seed(seed: object) -> int:
    """The seed as Python's int, or ``ValueError`` unless it is one that torch's generators take."""
    return check_integer("seed", seed, -(1 << 63), 1 << 64)


def random_vectors(like: Tensor, count: int, seed: int, *, signs: bool = False) -> Iterator[Tensor]:
    """Vectors of independent normal entries or signs, from a generator of their own."""
    generator = torch.Generator().manual_seed(check_seed(seed))
    for _ in range(count):
        if signs:
            drawn = 2.0 * torch.randint(0, 2, like.shape, generator=generator) - 1.0
        else:
            drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        yield drawn.to(like)
