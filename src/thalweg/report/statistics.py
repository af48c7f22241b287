"""What may be concluded from seeds and trials: intervals, paired tests, corrections, ranks, profiles.

Everything here works on plain numbers; what is compared and how it is said is elsewhere.

* An interval never reaches where the metric cannot be, and is geometric where the metric's axis is.
* Seeds are shared: optimizers start from the same weights and see the same batches, so their results rise and fall
  together from seed to seed. Two are compared by the differences on each seed, not by their intervals.
* Many are compared: p-values are corrected by Holm's method, over all pairs of a table.
* A seed that never reached the target counts with the whole length of the run; it is not left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from thalweg.records.metric import Metric

LEVEL = 0.95
SIGNIFICANT = 0.05
POINTS = 64  # of a best-of-n curve, at most

CONTAINS = {"alto": "lamb", "ema-nesterov": "adamw", "thalweg.ALTO": "thalweg.Lamb",
            "thalweg.EAdamW": "torch.optim.AdamW", "thalweg.EAdam": "torch.optim.Adam",
            "thalweg.ESGD": "torch.optim.SGD"}  # fmt: skip
"""Which optimizer is a special case of which, at α = 0; ``e-X`` contains ``X`` besides."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean (geometric where the metric is logarithmic) and its 95 % confidence limits.

    ``low`` and ``high`` are None where there are none: of fewer than two values.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Paired:
    """How two optimizers differ over the seeds they share.

    ``difference`` is the mean of a - b, or of log(a / b) where ``ratio``; ``low`` and ``high`` are its 95 % limits.
    ``p`` is of the two-sided paired t-test, ``adjusted`` the same after Holm's correction (1 before it). ``effect`` is
    Hedges' g of ``difference``: in standard deviations over the seeds, 0 to .2 is negligible, from .8 on it is large.
    ``better`` is whether a has the better mean.
    """

    difference: float
    low: float
    high: float
    p: float
    effect: float
    seeds: int
    ratio: bool
    better: bool
    adjusted: float = 1.0

    @property
    def significant(self) -> bool:
        """Whether the difference is beyond the noise of the seeds."""
        return self.adjusted < SIGNIFICANT

    def reverse(self) -> Paired:
        """The same of b and a."""
        return replace(
            self, difference=-self.difference, low=-self.high, high=-self.low, effect=-self.effect,
            better=not self.better and self.difference != 0,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class BestOf:
    """The best validation metric of ``n`` trials drawn from those that were made: its mean and its quartiles."""

    n: int
    expected: float
    low: float
    high: float


def interval(values: Sequence[float], metric: Metric) -> Interval:
    """The mean with its 95 % confidence limits by Student's t, on the scale of the metric.

    Logarithmic metrics: of the logarithms. Metrics bounded on both sides: the mean's standard error carried to the
    log-odds of its place between the bounds; bounded on one side: to the logarithm of its distance from the bound.

    >>> found = interval([98.0, 99.0, 100.0], Metric("accuracy", "max", low=0.0, high=100.0))
    >>> found.mean, round(found.low, 2), round(found.high, 2)
    (99.0, 88.95, 99.92)
    >>> found = interval([1e-3, 1e-2], Metric("loss", "min", log=True))
    >>> round(found.mean, 6)
    0.003162
    """
    kept = tuple(values)
    if metric.log and min(kept) > 0.0:
        mean, half = _mean_and_half(np.log(kept))
        return Interval(math.exp(mean), *_limits(mean, half, np.exp), kept)
    mean, half = _mean_and_half(np.asarray(kept))
    if half is None:
        return Interval(mean, None, None, kept)
    low, high = _bounded(mean, half, metric)
    return Interval(mean, min(mean, max(low, metric.low)), max(mean, min(high, metric.high)), kept)


def _bounded(mean: float, half: float, metric: Metric) -> tuple[float, float]:
    below, above = mean - metric.low, metric.high - mean
    if below <= 0.0 or above <= 0.0 or (math.isinf(below) and math.isinf(above)):
        return mean - half, mean + half
    if math.isinf(above):
        return metric.low + below * math.exp(-half / below), metric.low + below * math.exp(half / below)
    if math.isinf(below):
        return metric.high - above * math.exp(half / above), metric.high - above * math.exp(-half / above)
    width = metric.high - metric.low
    odds = [below / above * math.exp(sign * half / below * (width / above)) for sign in (-1.0, 1.0)]
    return metric.low + width * odds[0] / (1.0 + odds[0]), metric.low + width * odds[1] / (1.0 + odds[1])


def _mean_and_half(values: np.ndarray) -> tuple[float, float | None]:
    """The mean and the half-width of its interval; scaled, so that nothing overflows."""
    scale = 2.0 ** min(1023, math.frexp(float(np.abs(values).max()))[1])  # of two, so that scaling rounds nothing
    mean = scale * float(np.mean(values / scale))
    n = len(values)
    if n < 2:
        return mean, None
    deviation = scale * float(np.std(values / scale, ddof=1))
    if deviation <= 1e-12 * abs(mean):  # rounding alone
        deviation = 0.0
    return mean, float(student.ppf(0.5 + LEVEL / 2, n - 1)) * deviation / math.sqrt(n)


def _limits(mean: float, half: float | None, back: np.ufunc) -> tuple[float | None, float | None]:
    if half is None:
        return None, None
    with np.errstate(over="ignore"):
        return float(back(mean - half)), float(back(mean + half))


def paired(a: Mapping[int, float], b: Mapping[int, float], metric: Metric) -> Paired | None:
    """Compare two optimizers by the seeds that both finished; None where these are fewer than two.

    Where all differences are the same, as happens with accuracies on few examples, a t-test is not defined, and the
    exact test of signs takes its place: p = 2 / 2ⁿ.

    >>> paired({0: 3.0, 1: 5.0, 2: 7.1}, {0: 2.0, 1: 4.0, 2: 6.0}, Metric("accuracy", "max")).better
    True
    """
    seeds = sorted(a.keys() & b.keys())
    if len(seeds) < 2:
        return None
    first, second = np.array([a[seed] for seed in seeds]), np.array([b[seed] for seed in seeds])
    ratio = metric.log and bool((first > 0.0).all() and (second > 0.0).all())
    if ratio:
        first, second = np.log(first), np.log(second)
    mean, half = _mean_and_half(first - second)
    assert half is not None
    if half:
        wide = float(student.ppf(0.5 + LEVEL / 2, len(seeds) - 1))
        p = 2.0 * float(student.sf(abs(mean) * wide / half, len(seeds) - 1))
    else:
        p = 2.0 / 2.0 ** len(seeds) if mean else 1.0
    span = math.inf if ratio else metric.high - metric.low
    return Paired(
        difference=mean,
        low=max(mean - half, -span),
        high=min(mean + half, span),
        p=p,
        effect=_hedges(first, second),
        seeds=len(seeds),
        ratio=ratio,
        better=mean > 0.0 if metric.goal == "max" else mean < 0.0,
    )


def _hedges(a: np.ndarray, b: np.ndarray) -> float:
    """Hedges' g: the difference of means in pooled standard deviations, without the bias of few values."""
    scale = float(max(np.abs(a).max(), np.abs(b).max())) or 1.0
    a, b = a / scale, b / scale
    difference = float(a.mean() - b.mean())
    pooled = math.sqrt((float(a.var(ddof=1)) + float(b.var(ddof=1))) / 2.0)
    if pooled <= 1e-12 * max(abs(float(a.mean())), abs(float(b.mean()))):
        return 0.0 if abs(difference) <= 1e-12 else math.copysign(math.inf, difference)
    return (1.0 - 3.0 / (8.0 * (len(a) - 1) - 1.0)) * difference / pooled


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the chance of any false claim among all of them (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    found, largest = [1.0] * len(ps), 0.0
    for i, index in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        largest = max(largest, min(1.0, (len(ps) - i) * ps[index]))
        found[index] = largest
    return found


def all_pairs(tests: Mapping[str, Mapping[int, float]], metric: Metric) -> dict[tuple[str, str], Paired]:
    """Every two optimizers of a table, in either order, corrected over all pairs."""
    found = {(a, b): one for a, b in combinations(tests, 2) if (one := paired(tests[a], tests[b], metric))}
    corrected = correct(found)
    return corrected | {(b, a): one.reverse() for (a, b), one in corrected.items()}


def correct(family: Mapping[tuple[str, str], Paired]) -> dict[tuple[str, str], Paired]:
    """The same comparisons with p-values adjusted for their number."""
    adjusted = holm([one.p for one in family.values()])
    return {key: replace(one, adjusted=p) for (key, one), p in zip(family.items(), adjusted, strict=True)}


def restricted_mean(times: Sequence[float | None], horizon: float) -> Interval:
    """The mean of min(time, horizon): the time to target that is spent within a budget.

    A seed that never got there (None) counts with ``horizon``. As every seed is watched until then, this is the area
    under the Kaplan-Meier curve up to ``horizon``.

    >>> restricted_mean([10.0, 20.0, None], 60.0).mean
    30.0
    """
    spent = [horizon if time is None else min(time, horizon) for time in times]
    return interval(spent, Metric("time", "min", low=0.0, high=horizon))


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
    places = {score: i for i, score in enumerate(sorted(set(scores.values())))}
    found = rankdata([places[score] for score in scores.values()])
    return {name: float(rank) for name, rank in zip(scores, found, strict=True)}


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


def special_case(name: str) -> str | None:
    """The optimizer that this one contains at α = 0, if any.

    Of one with given hyperparameters, it has the same; with a given α there is none.

    >>> special_case("alto"), special_case("e-muon"), special_case("sgd")
    ('lamb', 'muon', None)
    >>> special_case("alto:beta2=0.9:beta=0.99"), special_case("alto:alpha=-5:beta=0.99")
    ('lamb:beta2=0.9', None)
    """
    base, *given = name.split(":")
    found = CONTAINS.get(base) or (base[2:] if base.startswith("e-") and base[2:] else None)
    if found is None or any(one.startswith("alpha=") for one in given):
        return None
    return ":".join([found, *(one for one in given if not one.startswith("beta="))])
