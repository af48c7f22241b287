"""Trials and tables put in order: the best of n trials, medians, ranks, performance profiles."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.records.metric import Metric

POINTS = 64  # of a best-of-n curve, at most


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best validation metric of ``n`` trials drawn from those that were made: its mean and its quartiles."""

    n: int
    expected: float
    low: float
    high: float


def median_best(bests: Sequence[float | None], metric: Metric) -> float | None:
    """The median of the studies' bests, of two middle ones the worse; a study without one (None) is the worst.

    >>> median_best([0.9, None, 0.8], Metric("accuracy", "max"))
    0.8
    """
    found = sorted((one for one in bests if one is not None), reverse=metric.goal == "max")
    middle = len(bests) // 2
    return found[middle] if middle < len(found) else None


def best_of_n(values: Sequence[float | None], metric: Metric) -> tuple[BestOf, ...]:
    """What the best of n trials is, for n up to their number, were they drawn without replacement from ``values``.

    Of N values in order from the best, the i-th is the best of n with probability C(N - i, n - 1) / C(N, n), exactly.
    A trial that failed (None) counts as the worst that finished. Means are geometric where the metric is logarithmic.

    >>> [round(one.expected, 6) for one in best_of_n([1.0, 2.0, 3.0], Metric("accuracy", "max"))]
    [2.0, 2.666667, 3.0]
    """
    finished = [value for value in values if value is not None]
    if not finished:
        return ()
    descending = metric.goal == "max"
    worst = min(finished) if descending else max(finished)
    ordered = np.array(sorted((worst if v is None else v for v in values), reverse=descending))
    geometric = metric.log and ordered.min() > 0.0
    total = len(ordered)
    counts = np.unique(np.geomspace(1, total, POINTS).round().astype(int)) if total > POINTS else range(1, total + 1)
    found = []
    for n in counts:
        i = np.arange(1, total - n + 1)
        weights = n / total * np.concatenate([[1.0], np.cumprod((total - i - n + 1) / (total - i))])
        kept = ordered[: len(weights)]
        mean = math.exp(float(weights @ np.log(kept))) if geometric else float(weights @ kept)
        reached = np.cumsum(weights)
        quartiles = [float(kept[min(int(np.searchsorted(reached, q - 1e-12)), len(kept) - 1)]) for q in (0.25, 0.75)]
        found.append(BestOf(int(n), mean, min(quartiles), max(quartiles)))
    return tuple(found)


def ranks(scores: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    """1 for the lowest score, and so on; equal ones share the mean of their ranks.

    >>> ranks({"a": (0, 1.0), "b": (0, 1.0), "c": (1, 0.5)})
    {'a': 1.5, 'b': 1.5, 'c': 3.0}
    """
    ordered = sorted(scores.values())
    return {name: (bisect_left(ordered, own) + 1 + bisect_right(ordered, own)) / 2 for name, own in scores.items()}


def mean_ranks(tables: Sequence[Mapping[str, tuple[float, ...]]]) -> dict[str, float]:
    """The mean rank of each optimizer over the tables in which it took part, the best first."""
    found: dict[str, list[float]] = {}
    for table in tables:
        for name, rank in ranks(table).items():
            found.setdefault(name, []).append(rank)
    means = {name: float(np.mean(own)) for name, own in found.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def profile(tables: Sequence[Mapping[str, float | None]]) -> dict[str, tuple[float, ...]]:
    """Performance profiles (Dolan and Moré 2002): of each optimizer, how many times the fastest's time it took.

    One ratio a table in which anybody got to the target, in order; ``inf`` where the optimizer did not (None). The
    profile at τ is the share of ratios that are at most τ.

    >>> profile([{"a": 10.0, "b": 20.0}, {"a": 30.0, "b": None}])
    {'a': (1.0, 1.0), 'b': (2.0, inf)}
    """
    found: dict[str, list[float]] = {}
    for table in tables:
        fastest = min((time for time in table.values() if time is not None), default=None)
        if not fastest:
            continue
        for name, time in table.items():
            found.setdefault(name, []).append(math.inf if time is None else time / fastest)
    return {name: tuple(sorted(ratios)) for name, ratios in found.items()}


def median_time(times: Sequence[float | None]) -> float | None:
    """The median over seeds, of two middle ones the later; None where it is a seed that never got there.

    >>> median_time([10.0, None, 20.0]), median_time([10.0, None])
    (20.0, None)
    """
    return median_best(times, Metric("time", "min"))
