"""What timings say that were taken in rounds, one step of every candidate in each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
OVER = 100


@dataclass(frozen=True)
class Spread:
    """A median and an interval around it."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Spread:
    """Median, first and third quartile.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.percentile(values, (25, 50, 75))
    return Spread(float(median), float(low), float(high))


def paired_ratios(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """Quartiles of the ratios within each round: what slows a whole round down cancels.

    >>> paired_ratios([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    Spread(median=3.0, low=2.5, high=3.5)
    """
    return quartiles([s / r for s, r in zip(seconds, reference, strict=True)])


def ratio_of_medians(seconds: Sequence[float], reference: Sequence[float], seed: int) -> Spread:
    """The ratio of the two medians, with its 95 % interval from resampling whole rounds."""
    both = np.array([seconds, reference])
    rounds = np.random.default_rng(seed).integers(0, both.shape[1], (RESAMPLES, both.shape[1]))
    above, below = np.median(both[:, rounds], axis=2)
    low, high = np.percentile(above / below, (2.5, 97.5))
    return Spread(float(np.median(both[0]) / np.median(both[1])), float(low), float(high))


def mean_with_first(first: float, warmup: Sequence[float], seconds: Sequence[float]) -> float:
    """Mean over the first 100 steps, whatever compilation the first ones paid for.

    The first step and the warm-up as they were; each step after those that were timed counts as their median.

    >>> mean_with_first(11.0, [], [1.0, 1.0])
    1.1
    """
    steps = [first, *warmup, *seconds][:OVER]
    return (sum(steps) + (OVER - len(steps)) * float(np.median(seconds))) / OVER
