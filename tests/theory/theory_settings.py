"""Random settings of E in front of momentum, and their map as a matrix of NumPy, row by row."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Setting:
    alpha: float
    beta: float
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def base(self) -> dict[str, object]:
        return {"momentum": self.momentum, "nesterov": self.nesterov}

    @property
    def arguments(self) -> dict[str, object]:
        return {"alpha": self.alpha, "beta": self.beta, **self.base}


def random_settings(
    count: int,
    *,
    seed: int,
    momentum: tuple[float, float] = (0.0, 0.99),
    nesterov: bool = False,
    horizon: float = 1e3,
    gain: float = 0.999,
) -> list[Setting]:
    """Gains within ±``gain``, horizons from 1 to ``horizon``; a fifth has β1 = 0, a fifth the lowest momentum."""
    draw = random.Random(seed)
    settings = []
    for k in range(count):
        beta = 0.0 if k % 5 == 0 else 1.0 - horizon ** -draw.random()
        m = momentum[0] if k % 5 == 1 else draw.uniform(*momentum)
        c = draw.uniform(-gain, gain)
        settings.append(Setting(c / (1.0 - beta), beta, m, nesterov and m > 0.0))
    return settings


def one_step(x: float, s: Setting) -> np.ndarray:
    """The matrix that takes (θ, m, b) to the next, m and b in units of the curvature, at x = ηλ."""
    c = s.alpha * (1.0 - s.beta)
    gradient = np.array([1.0, 0.0, 0.0])
    average = np.array([0.0, 0.0, 1.0])
    passed = (1.0 + c) * gradient - c * average
    m = s.momentum * np.array([0.0, 1.0, 0.0]) + (1.0 - s.momentum) * passed
    b = s.beta * average + (1.0 - s.beta) * gradient
    direction = s.momentum * m + (1.0 - s.momentum) * passed if s.nesterov else m
    return np.stack([gradient - x * direction, m, b])


def radius(x: float, s: Setting) -> float:
    return float(np.abs(np.linalg.eigvals(one_step(x, s))).max())
