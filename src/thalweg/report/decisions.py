"""Who is better than whom: the one place that decides it, with one correction for p-values and intervals alike.

A page compares many pairs. Each is tested at the level of 5 % over their number (Bonferroni), and its interval has the
confidence that belongs to that level: it excludes 0 exactly where the corrected p is below .05, and all intervals of a
page hold together in 95 % of pages. Where the whole interval lies within ± the margin, the two are equivalent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from scipy.special import bdtr, stdtr, stdtrit

SIGNIFICANT = 0.05
Key = TypeVar("Key")


class Outcome(StrEnum):
    """What may be said of two optimizers."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    NOT_COMPARABLE = "not comparable"

    @property
    def reverse(self) -> Outcome:
        """The same of the second against the first."""
        return {Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER}.get(self, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean difference a - b, or of log(a / b) where ``ratio``, with its standard error.

    ``freedom`` are the degrees of freedom of Student's t; ``higher`` is whether higher values are better. ``signs`` is
    the number of seeds where all of them differ by the same, None elsewhere: their exact test of signs, p = 2 / 2ⁿ,
    takes the t-test's place. ``order``, where a value is only a bound, is on how many seeds a's is surely below b's and
    on how many above: there too the signs are tested, as the scatter of bounds is no error, and there is no interval.
    ``comparisons`` is how many tests it is one of. A difference within ± ``margin`` does not matter to whoever set it;
    None where nobody did, or where differences are factors. ``span`` is the largest difference that the metric allows.
    """

    difference: float
    error: float
    freedom: float
    higher: bool
    ratio: bool = False
    signs: int | None = None
    order: tuple[int, int] | None = None
    comparisons: int = 1
    margin: float | None = None
    span: float = math.inf

    @property
    def better(self) -> bool:
        """Whether a has the better mean, which decides nothing."""
        return self.difference != 0.0 and (self.difference > 0.0) == self.higher

    @property
    def alike(self) -> bool:
        """Whether the difference is the same on every seed, so that no spread is seen."""
        return self.signs is not None

    @property
    def p(self) -> float:
        """The two-sided p-value of this comparison alone."""
        if self.signs is not None:
            return 2.0 / 2.0**self.signs if self.difference else 1.0
        if self.order is not None:
            return min(1.0, 2.0 * float(bdtr(min(self.order), sum(self.order), 0.5))) if any(self.order) else 1.0
        return 2.0 * float(stdtr(self.freedom, -abs(self.difference) / self.error))

    @property
    def adjusted(self) -> float:
        """The p-value after Bonferroni's correction."""
        return min(1.0, self.comparisons * self.p)

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below .05, and so 0 outside of the interval."""
        return self.adjusted < SIGNIFICANT

    @property
    def reach(self) -> float:
        """The half-width of the interval: none, or infinite, where no spread is seen; infinite where there is none."""
        if self.order is not None:
            return math.inf
        if self.signs is not None:
            return 0.0 if self.comparisons * 2.0 / 2.0**self.signs < SIGNIFICANT else math.inf
        return self.error * -float(stdtrit(self.freedom, SIGNIFICANT / (2 * self.comparisons)))

    @property
    def low(self) -> float:
        """The lower limit, of 1 - .05 / ``comparisons`` confidence."""
        return max(self.difference - self.reach, -self.span)

    @property
    def high(self) -> float:
        """The upper limit."""
        return min(self.difference + self.reach, self.span)

    @property
    def within_margin(self) -> bool:
        """Whether all of the interval lies within ± the margin.

        Two one-sided tests of level .05 / ``comparisons`` need an interval of twice that level: at this one they are
        conservative.
        """
        return self.margin is not None and not self.ratio and -self.margin < self.low <= self.high < self.margin

    @property
    def verdict(self) -> Outcome:
        """What is decided."""
        return _decided(self)


def _decided(one: Difference) -> Outcome:
    order = one.order or (0, 0)
    if one.difference and one.significant and (order[0] - order[1]) * one.difference <= 0.0:
        return Outcome.BETTER if one.better else Outcome.WORSE
    return Outcome.EQUIVALENT if one.within_margin else Outcome.UNDECIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired(Difference):
    """How two optimizers differ over the seeds that both finished.

    ``effect`` is Hedges' g: the difference in standard deviations over the seeds; 0 to .2 is negligible, from .8 on it
    is large. ``tried`` are the seeds of a and of b, ``failed`` those of them without a result, ``censored`` those of
    ``seeds`` whose value is only a bound: the target was not reached. ``left_out`` says why the two are not comparable
    where that is known beforehand: one of them learnt nothing.
    """

    seeds: int
    effect: float = 0.0
    tried: tuple[int, int] = (0, 0)
    failed: tuple[int, int] = (0, 0)
    censored: tuple[int, int] = (0, 0)
    left_out: str = ""

    @property
    def spread(self) -> float:
        """The standard deviation of the differences over the seeds."""
        return self.error * math.sqrt(self.seeds)

    @property
    def survivor(self) -> bool:
        """Whether the better mean is that of what is left: its optimizer failed, or missed the target, on more seeds.

        More in number or as a share of those that were tried, which differ while a comparison is under way.
        """
        if not self.difference:
            return False
        ahead, behind = (0, 1) if self.better else (1, 0)
        tried = [max(1, count) for count in self.tried]
        shares = [self.failed[i] * tried[1 - i] for i in (0, 1)]
        return any(count[ahead] > count[behind] for count in (self.failed, shares, self.censored))

    @property
    def unseen(self) -> bool:
        """Whether the target was reached by neither on any seed: the values are equal, what they bound need not be."""
        return self.seeds > 0 and self.censored == (self.seeds, self.seeds)

    @property
    def verdict(self) -> Outcome:
        """What is decided: never for what is left after failing on more seeds, nor on any where both learnt nothing."""
        if self.left_out or self.unseen:
            return Outcome.NOT_COMPARABLE
        uneven = self.failed[0] != self.failed[1] or self.censored[0] != self.censored[1]
        found = _decided(self)
        return Outcome.UNDECIDED if self.survivor or (uneven and found is Outcome.EQUIVALENT) else found

    def reverse(self) -> Paired:
        """The same of b and a."""
        return replace(
            self, difference=-self.difference, effect=-self.effect, tried=self.tried[::-1], failed=self.failed[::-1],
            censored=self.censored[::-1], order=self.order and self.order[::-1],
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled(Difference):
    """The mean over ``tables`` tables of the mean paired differences of two optimizers: of these tables, no others."""

    tables: int


Kind = TypeVar("Kind", bound=Difference)


def correct(family: Mapping[Key, Kind], comparisons: int) -> dict[Key, Kind]:
    """The same differences, each as one of so many comparisons.

    Raises:
        ValueError: ``comparisons`` is below 1.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons must be at least 1, got {comparisons}")
    return {key: replace(one, comparisons=comparisons) for key, one in family.items()}


def pool(pairs: Sequence[Paired]) -> Pooled | None:
    """The mean of the differences of tables of one metric, with the standard error that the tables' own give it.

    Of k differences with standard errors e and degrees of freedom f: √Σe² / k, with the harmonic mean of
    (Σe²)² / Σ(e⁴ / f) (Satterthwaite 1946, Welch 1947) and of the least f as degrees of freedom. By the former alone,
    where one table is much noisier than the others, false claims are up to eight times as frequent as they should be at
    levels as small as a page's; by the latter alone they are never too frequent (Banerjee 1960), and next to none true.

    Left out are tables in which the two are not comparable, in which a seed failed, in which no error is known, as all
    seeds differ by the same or a value is only a bound, and of the others those with fewer than half as many seeds as
    one of them has: such a table's error alone would be the mean's. None where fewer than two are left.

    >>> one = Paired(difference=1.0, error=0.3, freedom=2, higher=True, seeds=3)
    >>> found = pool([one, replace(one, difference=0.0, error=0.4)])
    >>> found.difference, round(found.error, 12), round(found.freedom, 2)
    (0.5, 0.25, 2.6)
    """
    kept = [
        one for one in pairs
        if one.verdict is not Outcome.NOT_COMPARABLE and not any(one.failed) and one.error > 0.0 and one.order is None
    ]  # fmt: skip
    kept = [one for one in kept if 2 * one.seeds >= max(one.seeds for one in kept)]
    if len(kept) < 2 or len({one.ratio for one in kept}) > 1:
        return None
    scale = max(one.error for one in kept)
    squares = [(one.error / scale) ** 2 for one in kept]
    welch = sum(squares) ** 2 / sum(e**2 / one.freedom for e, one in zip(squares, kept, strict=True))
    margins = [one.margin for one in kept if one.margin is not None]
    return Pooled(
        difference=sum(one.difference for one in kept) / len(kept),
        error=scale * math.sqrt(sum(squares)) / len(kept),
        freedom=2.0 / (1.0 / welch + 1.0 / min(one.freedom for one in kept)),
        higher=kept[0].higher,
        ratio=kept[0].ratio,
        margin=min(margins) if len(margins) == len(kept) else None,
        tables=len(kept),
    )
