"""Six problems of a matrix and a vector that tell one LAMB from another; NumPy alone."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

STEPS, LR = 10, 0.02
SHAPES = ((5, 3), (3,))
Arrays: TypeAlias = list[np.ndarray]

REGIMES = ("default decay", "decay 0.1", "decay 0", "norms above 10", "zeros", "small gradients")
DECAYS = {"default decay": None, "decay 0": 0.0}
"""None: the library's own. Of regimes that are not listed it is 0.1."""


def start_of(regime: str) -> Arrays:
    scale = {"norms above 10": 10.0, "zeros": 0.0}.get(regime, 1.0)
    rng = np.random.RandomState(0)
    return [scale * rng.standard_normal(shape) for shape in SHAPES]


def gradients_of(regime: str) -> list[Arrays]:
    """For each step."""
    scale = 1e-3 if regime == "small gradients" else 1.0
    rng = np.random.RandomState(1)
    return [[scale * rng.standard_normal(shape) for shape in SHAPES] for _ in range(STEPS)]


def decay_of(regime: str) -> float | None:
    return DECAYS.get(regime, 0.1)
