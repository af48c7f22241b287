"""Numbers and verdicts as people write them."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from thalweg.report.decisions import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.records.metric import Metric
    from thalweg.report.decisions import Difference, Paired, Pooled
    from thalweg.report.statistics import Interval
    from thalweg.report.summary import Row, Summary


def short(value: float) -> str:
    """Three significant digits, and no exponent on everyday numbers.

    >>> short(1234.5), short(0.00012345), short(0.9999), short(7.0)
    ('1,234', '0.000123', '0.9999', '7')
    """
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if 100 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.6g}" if value != 1 and float(text) == 1 else text  # a coefficient of 0.9999 is not 1


def together(values: Sequence[float]) -> list[str]:
    """Values of one kind with as many decimals as tell them apart, and two digits of their span.

    >>> together([97.123, 96.5, 97.7]), together([0.00091, 0.0004, 0.0021]), together([3.0, 3.0])
    (['97.1', '96.5', '97.7'], ['0.0009', '0.0004', '0.0021'], ['3', '3'])
    """
    finite = [value for value in values if math.isfinite(value)]
    span = max(finite) - min(finite) if finite else 0.0
    largest = max((abs(value) for value in finite), default=0.0)
    if not span or not 1e-4 <= largest < 1e6:
        return [f"{value:.3g}" if abs(value) < 1e-4 or abs(value) >= 1e6 else f"{value:.4g}" for value in values]
    small = min((abs(value) for value in finite if value), default=1.0)
    decimals = max(1 - math.floor(math.log10(span)), -math.floor(math.log10(small)) if small < span / 10 else 0)
    return [f"{value:.{min(max(decimals, 0), 6)}f}" for value in values]


def interval(found: Interval) -> str:
    """The mean with its limits, if it has any.

    >>> from thalweg.report.statistics import Interval
    >>> interval(Interval(97.123, 96.5, 97.7, ()))
    '97.1 (96.5 to 97.7)'
    """
    if found.low is None or found.high is None:
        return f"{found.mean:.4g}"
    mean, low, high = together([found.mean, found.low, found.high])
    return f"{mean} ({low} to {high})"


def reached(row: Row) -> str:
    """How many of the seeds reached the target; "" where there is none."""
    return "" if row.reached is None else f"{row.reached}/{row.seeds}"


def bound(row: Row) -> str:
    """What stands before a time to the target that is only a bound: some seed never got there."""
    return "≥ " if row.reached is not None and row.reached < row.seeds else ""


def settings(values: dict[str, float]) -> str:
    """Hyperparameters on a line."""
    return ", ".join(f"{name}={short(value)}" for name, value in values.items())


def quantity(metric: Metric) -> str:
    """What the metric measures, on whatever data."""
    return metric.name.removeprefix("test ")


def labelled(name: str, metric: Metric) -> str:
    """What an axis says of values of a metric: their name, and the unit in brackets.

    >>> from thalweg.records.metric import Metric
    >>> labelled("test accuracy", Metric("test accuracy", "max", "%")), labelled("loss", Metric("loss", "min"))
    ('test accuracy (%)', 'loss')
    """
    return f"{name} ({metric.unit})" if metric.unit else name


def units(metric: Metric) -> str:
    """Its unit, after a space."""
    return f" {metric.unit}" if metric.unit else ""


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def p_value(p: float) -> str:
    """A p-value.

    >>> p_value(0.0004), p_value(0.0312)
    ('p < 0.001', 'p = 0.031')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def points(metric: Metric) -> str:
    """The unit of a difference between two values, after a space: percentages differ by points.

    >>> from thalweg.records.metric import Metric
    >>> points(Metric("accuracy", "max", "%")), points(Metric("loss", "min", "nats"))
    (' points', ' nats')
    """
    return " points" if metric.unit == "%" else units(metric)


WIDE = math.log(1e6)  # of an interval of logarithms, which says nothing

MARKS = {
    Outcome.BETTER: "✓", Outcome.WORSE: "✗", Outcome.EQUIVALENT: "=", Outcome.UNDECIDED: "?",
    Outcome.NOT_COMPARABLE: "–",
}  # fmt: skip
"""Of verdicts, to tell them apart without colour."""


def mark(one: Difference) -> str:
    """The mark of a verdict; two of one that is decided and smaller than the margin.

    >>> from thalweg.report.decisions import Difference
    >>> mark(Difference(difference=0.2, error=0.01, freedom=4, higher=True, margin=0.5))
    '✓='
    """
    both = one.verdict in (Outcome.BETTER, Outcome.WORSE) and one.within_margin
    return MARKS[one.verdict] + (MARKS[Outcome.EQUIVALENT] if both else "")


def amount(value: float, metric: Metric) -> str:
    """A difference with its unit."""
    return f"{short(value)}{points(metric)}"


def gap(pair: Difference, metric: Metric) -> str:
    """How far the two are apart, without saying which is better.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.decisions import Difference
    >>> gap(Difference(difference=-0.5, error=0.1, freedom=4, higher=True), Metric("accuracy", "max", "%"))
    '0.50 points (0.22 to 0.78)'
    """
    mean, low, high = _limits(pair, math.copysign(1.0, pair.difference))
    apart = f"a factor of {mean}" if pair.ratio else f"{mean}{points(metric)}"
    return f"{apart}{_within(pair, low, high)}"


def lead(pair: Difference, metric: Metric, *, unit: bool = True) -> str:
    """How far the first is ahead of the second, with its interval: a difference, or a factor where ``ratio``.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.decisions import Difference
    >>> one = Difference(difference=-0.5, error=0.1, freedom=4, higher=False)
    >>> lead(one, Metric("loss", "min", "nats"))
    '+0.50 nats (+0.22 to +0.78)'
    >>> lead(Difference(difference=-2.7, error=4.0, freedom=3, higher=False, ratio=True), Metric("loss", "min"))
    '×14.9 (not known within a factor of 10⁶)'
    >>> lead(Difference(difference=-25 / 3, error=1.0, freedom=3, higher=False, order=(4, 0)), Metric("", "min"))
    '+8.33 (no interval: some targets were missed)'
    """
    limits = _limits(pair, 1.0 if pair.higher else -1.0)
    mean, low, high = (f"×{text}" for text in limits) if pair.ratio else map(signed, limits)
    return f"{mean}{points(metric) if unit and not pair.ratio else ''}{_within(pair, low, high)}"


def _within(pair: Difference, low: str, high: str) -> str:
    """What stands behind a mean difference for its interval."""
    if pair.alike:
        return " on every seed"
    if pair.order is not None:
        return " (no interval: some targets were missed)"
    return f" ({low} to {high})" if not pair.ratio or pair.reach < WIDE / 2.0 else " (not known within a factor of 10⁶)"


def _limits(pair: Difference, sign: float) -> list[str]:
    """The mean, of two digits at least, and the limits, on the side of ``sign``."""
    values = [pair.difference * sign, *sorted((pair.low * sign, pair.high * sign))]
    if pair.alike:
        values = values[:1] * 3
    if pair.ratio:
        return [short(math.exp(min(value, 700.0))) for value in values]
    if pair.order is not None:
        return [short(values[0])] * 3
    mean, low, high = together(values)
    wanted = f"{values[0]:.2g}"
    return [wanted if 1e-4 <= abs(values[0]) < 10.0 and len(wanted) > len(mean) else mean, low, high]


def signed(text: str) -> str:
    """A number with its sign; 0 has none.

    >>> signed("0.5"), signed("-0.5"), signed("0.00")
    ('+0.5', '-0.5', '0.00')
    """
    bare = text.removeprefix("-")
    return bare if not bare.strip("0.") else text if text != bare else f"+{text}"


def family(summary: Summary) -> str:
    """Over how many comparisons a page corrects, once, at its head."""
    return corrected(summary.comparisons, summary.looks)


def corrected(comparisons: int, looks: int = 1) -> str:
    """How p-values and intervals of differences are corrected.

    >>> corrected(12, 2)
    'p-values and 95 % intervals of differences are corrected over 12 comparisons, 6 at each of 2 looks (Bonferroni).'
    """
    if comparisons == 1:
        return "There is one comparison, and nothing to correct for."
    times = f", {comparisons // looks} at each of {looks} looks" if looks > 1 else ""
    over = f"{comparisons} comparisons{times}"
    return f"p-values and 95 % intervals of differences are corrected over {over} (Bonferroni)."


def losses(pair: Paired, a: str, b: str) -> str:
    """On how many seeds each of the two has no result, or only a bound; "" if on none.

    >>> from thalweg.report.decisions import Paired
    >>> one = Paired(difference=-0.5, error=0.1, freedom=4, higher=True, seeds=5, tried=(8, 8), failed=(3, 0))
    >>> losses(one, "a", "b")
    'a failed on 3 of 8 seeds, b on 0 of 8'
    """
    found = []
    for what, counts, totals in (
        ("failed", pair.failed, pair.tried), ("did not reach the target", pair.censored, (pair.seeds, pair.seeds))
    ):  # fmt: skip
        if any(counts):
            found.append(f"{a} {what} on {counts[0]} of {totals[0]} seeds, {b} on {counts[1]} of {totals[1]}")
    return "; ".join(found)


def tally(pairs: Sequence[tuple[Difference, Metric]], noun: str) -> str:
    """Of differences how many are decided, how many equivalent and how many neither.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.decisions import Difference
    >>> one = Difference(difference=0.1, error=0.01, freedom=4, higher=True, margin=0.5)
    >>> tally([(one, Metric("accuracy", "max", "%"))], "pair")
    'Of 1 pair 1 is decided, by less than the margin of 0.5 points'
    """
    won = [one for one in pairs if one[0].verdict in (Outcome.BETTER, Outcome.WORSE)]
    small = [one for one in won if one[0].within_margin]
    equal = [one for one in pairs if one[0].verdict is Outcome.EQUIVALENT]
    margins = listed([*dict.fromkeys(amount(one.margin or 0.0, metric) for one, metric in [*small, *equal])])
    if not won and not equal:
        return f"No {noun} is decided"
    said = f"Of {len(pairs)} {plural(len(pairs), noun)} {len(won) or 'none'} {'are' if len(won) > 1 else 'is'} decided"
    whom = f"{len(small)} of them " if len(won) > 1 else ""
    said += f", {whom}by less than the margin of {margins}" if small else ""
    for count, what in (
        (len(equal), f"equivalent within {margins}"),
        (len(pairs) - len(won) - len(equal), "undecided"),
    ):
        said += f"; {count} {'are' if count > 1 else 'is'} {what}" if count else ""
    return said


def incomplete(row: Row) -> list[str]:
    """What of a row was asked for and is not there yet, if anything."""
    cell = row.cell
    wanted = cell.wanted
    if sum(not trial.round or cell.rounds > 0 for trial in cell.trials) >= wanted and row.seeds >= cell.planned_seeds:
        return []
    return [
        f"{row.optimizer} is incomplete: {row.trials} of at least {wanted} trials, {row.seeds} of "
        f"{cell.planned_seeds} seeds."
    ]


AXES = {
    "lr": "learning rate", "weight_decay": "weight decay", "forgetting": "1 - momentum", "forgetting2": "1 - β2",
    "gain": "gain α(1 - β1)", "horizon": "horizon 1/(1 - β1)", "mix": "α",
}  # fmt: skip


def axis(name: str) -> str:
    """A searched coordinate in words."""
    return AXES.get(name, name)


def pooled(found: Pooled, metric: Metric, meet: int) -> str:
    """A mean over tables, with its interval and what is decided.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.decisions import Pooled
    >>> one = Pooled(difference=0.007, error=0.03, freedom=20, higher=True, margin=0.5, tables=9)
    >>> pooled(one, Metric("accuracy", "max", "%"), 9)
    '= +0.007 points (-0.056 to +0.070) in accuracy over 9 tables, equivalent within 0.5 points'
    """
    tables = f"{found.tables} tables" if found.tables == meet else f"{found.tables} of {meet} tables"
    return f"{mark(found)} {lead(found, metric)} in {metric.name} over {tables}, {decision(found, metric)}"


def decision(one: Difference, metric: Metric) -> str:
    """The verdict in words, with the margin where that says something.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.decisions import Difference
    >>> decision(Difference(difference=0.2, error=0.01, freedom=4, higher=True, margin=0.5), Metric("a", "max", "%"))
    'better, by less than 0.5 points'
    """
    if one.margin is not None and one.within_margin:
        if one.verdict is Outcome.EQUIVALENT:
            return f"equivalent within {amount(one.margin, metric)}"
        if one.verdict in (Outcome.BETTER, Outcome.WORSE):
            return f"{one.verdict}, by less than {amount(one.margin, metric)}"
    return str(one.verdict)


def failures(row: Row) -> list[tuple[str, str, int]]:
    """What failed and why, with how often; the most frequent first."""
    runs = row.cell.runs
    found = Counter((run.failure, run.reason or "no reason recorded") for run in runs if run.failure is not None)
    return [(failure, reason, n) for (failure, reason), n in found.most_common()]


def plural(n: int, noun: str) -> str:
    """The noun for n of them."""
    return noun if n == 1 else f"{noun}s"
