"""Means over seeds with their intervals, ratios of paired seeds, and slopes of curves on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from thalweg.records.metric import Metric
from thalweg.report.decisions import Outcome
from thalweg.report.statistics import interval, paired

LARGEST = 1e6  # of what is still drawn, and said
PLAIN = Metric("value", "min")
RATIO = Metric("ratio", "min", log=True, low=0.0)


class Ratio(NamedTuple):
    """The geometric mean of the ratios of paired values, its 95 % interval, and whether it is decided to be not 1.

    What is below 1, the better side, is never ``below`` by the seeds that are left where others have no value.
    """

    mean: float
    low: float
    high: float
    pairs: int
    above: bool
    below: bool

    def __str__(self) -> str:
        known = self.high < LARGEST * self.low  # two seeds say next to nothing
        return f"{self.mean:.3g} ({f'{self.low:.3g} to {self.high:.3g}' if known else 'unknown'})"


def ratios(a: Sequence[float | None], b: Sequence[float | None], comparisons: int = 1) -> Ratio | None:
    """a over b at each seed that has both, by the paired test; None of less than two.

    Where all seeds differ by the same factor, that is the interval; the test of signs decides. A seed without a value
    (None) failed: see :attr:`~thalweg.report.decisions.Paired.verdict`. Test and interval are one of so many
    ``comparisons``.

    >>> print(ratios([2.0, 2.0, None], [1.0, 1.0, 1.0]))
    2 (2 to 2)
    """
    pairs = ((seed, x, y) for seed, (x, y) in enumerate(zip(a, b, strict=True)) if x is not None and y is not None)
    quotients = {seed: x / y for seed, x, y in pairs if x > 0.0 and y > 0.0}
    failed, others = ([seed for seed, value in enumerate(own) if value is None] for own in (a, b))
    found = paired(quotients, dict.fromkeys(quotients, 1.0), RATIO, failed=(failed, others))
    if found is None:
        return None
    found = replace(found, comparisons=comparisons)
    low, high = (found.difference, found.difference) if found.alike else (found.low, found.high)
    mean, low, high = (math.exp(value) if value < 700.0 else math.inf for value in (found.difference, low, high))
    return Ratio(
        mean, low, high, found.seeds,
        above=found.verdict is Outcome.WORSE, below=found.verdict is Outcome.BETTER,
    )  # fmt: skip


def pooled(
    cells: Sequence[tuple[Sequence[float | None], Sequence[float | None]]], comparisons: int = 1
) -> tuple[Ratio | None, int]:
    """The geometric mean over cells of a over b, and of how many cells: those that have both at every seed.

    Seeds are the same in all cells, which therefore rise and fall together: the mean over cells is taken at each seed,
    and its interval over the seeds.

    >>> found, cells = pooled([([2.0, 4.0], [1.0, 1.0]), ([8.0, 4.0], [1.0, 1.0]), ([None, 1.0], [1.0, 1.0])])
    >>> found.mean, cells
    (4.0, 2)
    """
    whole = [(a, b) for a, b in cells if len(a) == len(b) and None not in a and None not in b]
    if not whole:
        return None, 0
    logs = [[math.log(x / y) for x, y in zip(a, b, strict=True) if x is not None and y is not None] for a, b in whole]
    means = [math.exp(float(value)) for value in np.mean(logs, axis=0)]
    return ratios(means, [1.0] * len(means), comparisons), len(whole)


def bars(found: Sequence[Ratio]) -> tuple[list[float], list[float]]:
    """How far the intervals reach below and above their means, as matplotlib draws it."""
    reach = [(one.mean - one.low, min(one.high, LARGEST) - one.mean) for one in found]
    return [max(0.0, below) for below, _ in reach], [max(0.0, above) for _, above in reach]


def over(values: Sequence[float | None], digits: int = 3) -> str:
    """The mean and the half-width of its 95 % interval; how many there are where some are not.

    >>> over([1.0, 3.0, None])
    '2 ± 12.7 (2 of 3)'
    """
    there = [value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return "none"
    within = interval(there, PLAIN)
    text = f"{within.mean:.{digits}g}"
    if within.high is not None:
        text += f" ± {within.reach[1]:.{digits}g}"
    return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)})"


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of log y over log x.

    Raises:
        ValueError: there are less than two points, or one is not positive.

    >>> round(slope([1.0, 10.0, 100.0], [5.0, 50.0, 500.0]), 12)
    1.0
    """
    if len(x) < 2 or min(*x, *y) <= 0.0:
        raise ValueError(f"a slope on logarithmic axes needs at least 2 positive points, got {list(x)} and {list(y)}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def log_spaced(first: int, last: int, count: int) -> list[int]:
    """Integers from first to last, evenly spaced on a logarithmic axis, each once.

    >>> log_spaced(1, 100, 5)
    [1, 3, 10, 32, 100]
    """
    return sorted({round(value) for value in np.geomspace(first, last, count)})
