"""What seeds show: intervals and paired differences. What they decide is in :mod:`thalweg.report.decisions`.

Everything here works on plain numbers; what is compared and how it is said is elsewhere.

* An interval never reaches where the metric cannot be, and is geometric where the metric's axis is.
* Seeds are shared: optimizers start from the same weights and see the same batches, so their results rise and fall
  together from seed to seed. Two are compared by the differences on each seed, not by their intervals.
* A metric that moves in steps hides part of the spread: the variance within a step is added, and where
  all seeds differ by the same, only their signs count. What floating point makes of values of their size is no spread.
* A seed that never reached the target counts with the whole length of the run; it is not left out of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import chdtr, stdtrit

from thalweg.arguments import check_finite, check_integer, check_nonnegative, check_positive, is_number, reject
from thalweg.records.metric import Metric
from thalweg.report.decisions import SIGNIFICANT, Paired

LEVEL = 0.95
ALIKE = 0.01  # a spread this small beside the difference is none, where it may be rounding
FINE = 1e-4  # values in steps no larger than this may be in those of rounding

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

    @property
    def reach(self) -> tuple[float, float]:
        """How far the limits are below and above the mean; 0 where there are none."""
        return (0.0, 0.0) if self.low is None or self.high is None else (self.mean - self.low, self.high - self.mean)


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
    geometric = metric.log and min(kept) > 0.0
    mean, half = _mean_and_half(np.log(kept) if geometric else np.asarray(kept))
    if half is None:
        return Interval(math.exp(mean) if geometric else mean, None, None, kept)
    if geometric:
        with np.errstate(over="ignore"):
            return Interval(math.exp(mean), float(np.exp(mean - half)), float(np.exp(mean + half)), kept)
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


def _mean_and_half(values: np.ndarray, rounding: float | None = None) -> tuple[float, float | None]:
    """The mean and the half-width of its interval; scaled, so that nothing overflows.

    A spread that is no more than ``rounding`` is none.
    """
    largest = float(np.abs(values).max())
    scale = _power_of_two(largest)
    mean = scale * float(np.mean(values / scale))
    n = len(values)
    if n < 2:
        return mean, None
    deviation = scale * float(np.std(values / scale, ddof=1))
    if deviation <= (_rounding(values) * largest if rounding is None else rounding):
        deviation = 0.0
    return mean, _wide(n) * deviation / math.sqrt(n)


def _power_of_two(largest: float) -> float:
    """A scale that rounds nothing."""
    return 2.0 ** min(1023, math.frexp(largest)[1])


def _wide(n: int) -> float:
    """Standard errors from the mean of n values to its limit."""
    return float(stdtrit(n - 1, 0.5 + LEVEL / 2))


def _rounding(values: np.ndarray) -> float:
    """What arithmetic leaves of equal values, as a share of their size: float32's where all of them are such numbers.

    A few roundings each: a mean, a factor of 100, a difference.
    """
    with np.errstate(over="ignore"):
        single = bool((values == values.astype(np.float32)).all())
    return 4.0 * float(np.finfo(np.float32 if single else np.float64).eps)


def _inherited(values: np.ndarray, metric: Metric) -> float:
    """What float32 can have left in values that no longer show it, as 100 m and 1 - m of a mean m do not.

    Of 1 - m it is as large as m's own rounding, and so as that of the bound it was taken from. Where a metric has no
    such bound, the step between the values shows it: 1 - m are multiples of the step of m, however small they are.
    """
    sizes = (float(np.abs(values).max()), abs(metric.low), abs(metric.high))
    rounding = float(np.finfo(np.float32).eps) * max(size for size in sizes if math.isfinite(size))
    step = _step(values)
    return 4.0 * max(rounding, step if step <= FINE else 0.0)


def _step(values: np.ndarray) -> float:
    """The largest number of which all values are multiples; 0 if all are 0 or one is not finite."""
    if not np.isfinite(values).all():
        return 0.0
    ratios = [float(value).as_integer_ratio() for value in values]
    common = max(denominator for _, denominator in ratios)
    return math.gcd(*(numerator * (common // denominator) for numerator, denominator in ratios)) / common


def paired(
    a: Mapping[int, float | None],
    b: Mapping[int, float | None],
    metric: Metric,
    *,
    censored: tuple[Collection[int], Collection[int]] = ((), ()),
    failed: tuple[Collection[int], Collection[int]] = ((), ()),
    margin: float | None = None,
) -> Paired | None:
    """Compare two optimizers by the seeds that both finished; None where these are fewer than two.

    The paired t-test, on the scale of the metric. A metric of resolution r shows differences in steps of r, behind
    which up to r²/12 of their variance is hidden (that of a uniform error, Sheppard's correction): it is added. Where
    all differences are the same, as happens with accuracies on few examples, no spread is seen at all, and the exact
    test of signs takes the t-test's place: p = 2 / 2ⁿ. Its interval is that one difference, or, of too few seeds for
    any decision (fewer than six, of one comparison), all that the metric can have. Where a value is only a bound, the
    signs of those differences that are sure are tested: p = 2 P(X ≤ k) for k of the rarer sign among n, X binomial of
    n and 1/2 (Dixon and Mood 1946); there is no interval.

    Args:
        a: the results of one by seed; None where it failed.
        b: those of the other.
        metric: what they are results of.
        censored: the seeds of a, and those of b, whose value is only a bound.
        failed: those on which a, and b, failed and have a value all the same, as a time to the target that is a bound.
        margin: the least difference that matters, in the metric's unit; None for the metric's own.

    >>> paired({0: 3.0, 1: 5.0, 2: 7.1}, {0: 2.0, 1: 4.0, 2: 6.0}, Metric("accuracy", "max")).better
    True
    >>> found = paired({0: 97.004, 1: 96.9, 2: 97.1}, {0: 97.0, 1: 96.896, 2: 97.096}, Metric("accuracy", "max"))
    >>> found.p  # one image of 25,000 on each of three seeds
    0.25
    """
    first, second = ({seed: value for seed, value in own.items() if value is not None} for own in (a, b))
    seeds = sorted(first.keys() & second.keys())
    n = len(seeds)
    if n < 2:
        return None
    x, y = np.array([first[seed] for seed in seeds]), np.array([second[seed] for seed in seeds])
    ratio = metric.log and bool((x > 0.0).all() and (y > 0.0).all())
    rounding = _rounding(np.concatenate([x, y]))
    if ratio:
        x, y = np.log(x), np.log(y)
        rounding *= max(1.0, float(np.abs(x).max()), float(np.abs(y).max()))
    else:
        rounding *= max(float(np.abs(x).max()), float(np.abs(y).max()))
    bounds = [tuple(seed in own for own in censored) for seed in seeds]
    order = _order(x, y, bounds) if any(map(any, bounds)) else None
    mean, _ = _mean_and_half(x - y)
    hidden = 0.0 if ratio else min(_inherited(np.concatenate([x, y]), metric), ALIKE * abs(mean))
    mean, half = _mean_and_half(x - y, max(rounding, hidden))
    assert half is not None
    if abs(mean) <= rounding:
        mean = 0.0
    error = half / _wide(n)
    return Paired(
        difference=mean,
        error=error if ratio else math.hypot(error, metric.resolution / math.sqrt(12.0 * n)),
        freedom=n - 1,
        higher=metric.goal == "max",
        ratio=ratio,
        signs=None if half or order is not None else n,
        order=order,
        margin=None if ratio else metric.margin if margin is None else margin,
        span=math.inf if ratio else metric.high - metric.low,
        effect=_hedges(x, y, mean, rounding),
        seeds=n,
        tried=(len(a), len(b)),
        failed=(len(a.keys() - first.keys() | {*failed[0]}), len(b.keys() - second.keys() | {*failed[1]})),
        censored=(sum(of_a for of_a, _ in bounds), sum(of_b for _, of_b in bounds)),
    )


def _order(x: np.ndarray, y: np.ndarray, bounds: Sequence[tuple[bool, ...]]) -> tuple[int, int]:
    """On how many seeds x is surely below y, and above, where those of ``bounds`` are at least what they are."""
    seeds = list(zip(x, y, bounds, strict=True))
    below = sum(not of_x and (of_y or a < b) for a, b, (of_x, of_y) in seeds)
    return below, sum(not of_y and (of_x or b < a) for a, b, (of_x, of_y) in seeds)


def _hedges(a: np.ndarray, b: np.ndarray, difference: float, rounding: float) -> float:
    """Hedges' g: the difference of means in pooled standard deviations, without the bias of few values."""
    scale = _power_of_two(float(max(np.abs(a).max(), np.abs(b).max())))
    a, b = a / scale, b / scale
    pooled = math.sqrt((float(a.var(ddof=1)) + float(b.var(ddof=1))) / 2.0)
    if pooled <= rounding / scale:
        return math.copysign(math.inf, difference) if difference else 0.0
    return (1.0 - 3.0 / (8.0 * (len(a) - 1) - 1.0)) * (difference / scale) / pooled


def all_pairs(
    tests: Mapping[str, Mapping[int, float | None]],
    metric: Metric,
    *,
    reference: str | None = None,
    margin: float | None = None,
) -> dict[tuple[str, str], Paired]:
    """Two optimizers of a table each, in the order of ``tests``: every two, or each beside ``reference``.

    Every two is what a comparison is for where nobody is singled out, and costs the most: k (k - 1) / 2 comparisons a
    table, over which each is corrected. Who asks only how the others do beside one, as beside what is in use now, says
    so before the results are seen, has k - 1, and can see smaller differences.
    """
    pairs = [pair for pair in combinations(tests, 2) if reference is None or reference in pair]
    return {(a, b): one for a, b in pairs if (one := paired(tests[a], tests[b], metric, margin=margin))}


def power(difference: float, sd: float, seeds: int, comparisons: int, level: float = SIGNIFICANT) -> float:
    """The chance that two optimizers which differ are found to: of a two-sided paired t-test after Bonferroni.

    With t the test's limit at ``level / comparisons``, δ = ``difference`` √seeds / ``sd`` and df = seeds - 1, the
    noncentral t is beyond ± t with probability ∫ φ(z) F(df ((δ + z) / t)²) dz, where φ is the normal density and F the
    distribution function of χ² with df degrees of freedom.

    Args:
        difference: between the true means, of any sign.
        sd: of the differences between two optimizers on the same seed, above 0.
        seeds: that both are trained on, at least 2.
        comparisons: how many pairs are corrected for, at least 1.
        level: the chance of any false claim, in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    >>> round(power(1.0, 1.0, 10, 1), 3)
    0.803
    """
    check_finite("difference", difference)
    check_positive("sd", sd)
    limit = _limit(seeds, comparisons, level)
    return _beyond(abs(difference) * math.sqrt(seeds) / sd, seeds - 1, limit)


def detectable(sd: float, seeds: int, comparisons: int, power: float = 0.8, level: float = SIGNIFICANT) -> float:
    """The difference that is found with the chance ``power``: the inverse of :func:`power`, in the unit of ``sd``.

    Args:
        sd: as for :func:`power`; 0 gives 0.
        seeds: likewise.
        comparisons: likewise.
        power: in (level, 1).
        level: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    >>> round(detectable(1.0, 5, 1), 2), round(detectable(1.0, 5, 10), 2)
    (1.68, 3.16)
    """
    check_nonnegative("sd", sd)
    limit = _limit(seeds, comparisons, level)
    if not (is_number(power) and level < power < 1.0):
        reject("power", power, f"a number in ({level:g}, 1)")
    low, high = 0.0, limit
    while _beyond(high, seeds - 1, limit) < power:
        low, high = high, 2.0 * high
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if _beyond(middle, seeds - 1, limit) < power else (low, middle)
    return sd * high / math.sqrt(seeds)


def deviation(values: Mapping[str, Mapping[int, float]], metric: Metric) -> float | None:
    """The standard deviation over seeds of the difference between two optimizers, pooled over all pairs.

    Of logarithms where the metric is logarithmic. What a metric of resolution r hides, r²/12, is added to the variance,
    as :func:`paired` does.

    Args:
        values: the results of each optimizer by seed.
        metric: what they are results of.

    Returns:
        None where no two optimizers share two seeds.

    >>> round(deviation({"a": {0: 1.0, 1: 2.0}, "b": {0: 3.0, 1: 6.0}}, Metric("loss", "min")), 4)
    1.4142
    """
    ratio = metric.log and all(value > 0.0 for own in values.values() for value in own.values())
    squares, freedom = 0.0, 0
    for a, b in combinations(values.values(), 2):
        pairs = [(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]
        if len(pairs) > 1:
            differences = [math.log(x) - math.log(y) if ratio else x - y for x, y in pairs]
            squares += float(np.var(differences)) * len(pairs)
            freedom += len(pairs) - 1
    if not freedom:
        return None
    return math.sqrt(squares / freedom + (0.0 if ratio else metric.resolution**2 / 12.0))


def _limit(seeds: int, comparisons: int, level: float) -> float:
    """How far from 0 the t of a pair must be."""
    check_integer("seeds", seeds, 2)
    check_integer("comparisons", comparisons, 1)
    check_positive("level", level, below=1.0)
    return float(-stdtrit(seeds - 1, level / (2.0 * comparisons)))


def _beyond(shift: float, df: int, limit: float) -> float:
    """How likely a noncentral t is beyond ± ``limit``; SciPy's own distribution is NaN at some shifts."""
    z, step = np.linspace(-9.0, 9.0, 3601, retstep=True)
    within = chdtr(df, df * np.square((shift + z) / limit))
    return min(1.0, float(step * np.sum(np.exp(-(z**2) / 2.0) * within)) / math.sqrt(2.0 * math.pi))


def restricted_mean(times: Sequence[float | None], horizon: float) -> Interval:
    """The mean of min(time, horizon): the time to target that is spent within a budget.

    A seed that never got there (None) counts with ``horizon``. As every seed is watched until then, this is the area
    under the Kaplan-Meier curve up to ``horizon``.

    >>> restricted_mean([10.0, 20.0, None], 60.0).mean
    30.0
    """
    spent = [horizon if time is None else min(time, horizon) for time in times]
    return interval(spent, Metric("time", "min", low=0.0, high=horizon))


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
