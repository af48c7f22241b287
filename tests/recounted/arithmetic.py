"""Means, intervals and tests, from textbooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence


class Interval(NamedTuple):
    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2.0


def student(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean and its interval by Student's t."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + level / 2.0, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def there(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


class Ratio(NamedTuple):
    """The geometric mean over pairs of a over b, its interval, and whether it differs from 1 (``above``, ``below``)."""

    mean: float
    low: float
    high: float
    above: bool
    below: bool


def ratio(a: Sequence[float | None], b: Sequence[float | None], family: int = 1) -> Ratio | None:
    """By the paired t-test of logarithms, one of so many; who misses more values is never below, the better side."""
    logs = [math.log(x / y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if len(logs) < 2:
        return None
    if np.ptp(logs) < 1e-12:
        one, decided = Interval(logs[0], logs[0], logs[0]), family * 2.0 * 0.5 ** len(logs) < 0.05 and logs[0] != 0.0
    else:
        one = student(logs, 1.0 - 0.05 / family)
        decided = not one.low <= 0.0 <= one.high
    missing = a.count(None) - b.count(None)  # type: ignore[attr-defined]
    with np.errstate(over="ignore"):
        mean, low, high = map(float, np.exp(one))
    return Ratio(
        mean, low, high,
        above=decided and one.mean > 0.0 and missing >= 0, below=decided and one.mean < 0.0 and missing <= 0,
    )  # fmt: skip


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line through logarithms over the last decade of x."""
    at, of = np.log(np.array(x, float)), np.log(np.array(y, float))
    late = np.array(x) >= 0.1 * x[-1]
    return float(stats.linregress(at[late], of[late]).slope)


def power(effect: float, n: int, level: float) -> float:
    """The chance of the two-sided t-test of n values whose mean is ``effect`` standard deviations.

    Integrated over the standard deviation that is found, which is chi-distributed.
    """
    found = np.linspace(0.0, 8.0, 4001)[1:]
    likely = stats.chi.pdf(found * math.sqrt(n - 1), n - 1)
    beyond = stats.t.isf(level / 2.0, n - 1) * found
    shift = effect * math.sqrt(n)
    decided = stats.norm.cdf(shift - beyond) + stats.norm.cdf(-shift - beyond)
    return float((likely * decided).sum() / likely.sum())


class Limit(NamedTuple):
    """Of ηλ; ``swings`` if the eigenvalue that leaves the unit circle there is not -1."""

    value: float
    swings: bool
    penalty: float


def stability(alpha: float, beta: float, beta2: float) -> Limit:
    """Where E(momentum as an average) on a quadratic begins to diverge, from the eigenvalues of a step.

    h = g + α(1-β1)(g - b), b ← β1 b + (1-β1) g, m ← β2 m + (1-β2) h, θ ← θ - ηm at g = λθ, with x = ηλ; the penalty is
    S = (1+β2)/(1-β2) - 2α.
    """
    c = alpha * (1.0 - beta)

    def step(x: float) -> np.ndarray:
        h = np.array([(1.0 + c) * x, -c, 0.0])
        b = np.array([(1.0 - beta) * x, beta, 0.0])
        m = beta2 * np.array([0.0, 0.0, 1.0]) + (1.0 - beta2) * h
        return np.linalg.eigvals(np.array([np.array([1.0, 0.0, 0.0]) - m, b, m]))

    def diverges(x: float) -> bool:
        return bool(np.abs(step(x)).max() > 1.0 + 1e-10)

    grid = np.geomspace(1e-2, 1e4, 600)
    high = next(i for i, x in enumerate(grid) if diverges(x))
    low, top = float(grid[high - 1]), float(grid[high])
    while top - low > 1e-9 * top:
        middle = (low + top) / 2.0
        low, top = (low, middle) if diverges(middle) else (middle, top)
    leaving = max(step(top), key=abs)
    return Limit(top, bool(abs(leaving.imag) > 1e-3), (1.0 + beta2) / (1.0 - beta2) - 2.0 * alpha)
