"""Numbers as people write them, and findings as sentences."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.records.metric import Metric
    from thalweg.report.statistics import Interval, Paired
    from thalweg.report.summary import Inclusion, RankedTable, Row, Summary


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


def size(effect: float) -> str:
    """What to call an effect size (Cohen's words)."""
    for most, word in ((0.2, "negligible"), (0.5, "small"), (0.8, "medium")):
        if abs(effect) < most:
            return word
    return "large"


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


def gap(pair: Paired, metric: Metric) -> str:
    """How far the two are apart, without saying which is better; the interval is of this pair alone, and says so.

    >>> from thalweg.records.metric import Metric
    >>> from thalweg.report.statistics import Paired
    >>> gap(Paired(-0.5, -0.9, -0.1, 0.01, 1.0, 5, False, False), Metric("accuracy", "max", "%"))
    '0.50 points (95 % interval 0.10 to 0.90, uncorrected)'
    """
    sign = math.copysign(1.0, pair.difference)
    values = [pair.difference * sign, *sorted((pair.low * sign, pair.high * sign))]
    if pair.ratio:
        values = [math.exp(min(value, 700.0)) for value in values]
    mean, low, high = together(values[:1] * 3 if pair.alike else values)
    apart = f"a factor of {mean}" if pair.ratio else f"{mean}{points(metric)}"
    return f"{apart} on every seed" if pair.alike else f"{apart} (95 % interval {low} to {high}, uncorrected)"


def losses(pair: Paired, a: str, b: str) -> str:
    """On how many seeds each of the two has no result, or only a bound; "" if on none.

    >>> from thalweg.report.statistics import Paired
    >>> losses(Paired(-0.5, -0.9, -0.1, 0.01, 1.0, 5, False, False, tried=(8, 8), failed=(3, 0)), "a", "b")
    'a failed on 3 of 8 seeds, b on 0 of 8'
    """
    found = []
    for what, counts, totals in (
        ("failed", pair.failed, pair.tried), ("did not reach the target", pair.censored, (pair.seeds, pair.seeds))
    ):  # fmt: skip
        if any(counts):
            found.append(f"{a} {what} on {counts[0]} of {totals[0]} seeds, {b} on {counts[1]} of {totals[1]}")
    return "; ".join(found)


def about_table(table: RankedTable) -> list[str]:
    """What one table shows."""
    metric, ranked = table.metric, [row for row in table.rows if row.test is not None]
    found = []
    if not ranked:
        return ["No optimizer has a result here yet."] if table.rows else ["Every optimizer is left out of this table."]
    first = ranked[0]
    assert first.test is not None
    found.append(
        f"{first.optimizer} ranks first: {metric.name} {interval(first.test)}{units(metric)} over "
        f"{len(first.test.values)} {plural(len(first.test.values), 'seed')}."
    )
    says = {
        "better": "It is significantly better than {}.",
        "worse": "On the seeds that both finished it is significantly worse than {}.",
        "left": "Against {} nothing is decided: the better mean comes from fewer seeds, as the others failed.",
        "level": "It does not differ significantly from {}.",
    }
    against = [(row.optimizer, _against(table.pairs.get((first.optimizer, row.optimizer)))) for row in ranked[1:]]
    for how, sentence in says.items():
        if names := [name for name, found_how in against if found_how == how]:
            found.append(sentence.format(listed(names)))
    if len(ranked) > 1 and (pair := table.pairs.get((first.optimizer, ranked[1].optimizer))) is not None:
        found.append(_second(pair, metric, ranked[1].optimizer))
    found += [
        f"{row.optimizer} failed on {row.failed_seeds} of {row.seeds} seeds and ranks after all that failed on fewer."
        for row in ranked
        if row.failed_seeds
    ]
    missing = [row.optimizer for row in table.rows if row.test is None]
    if missing:
        found.append(f"No result: {listed(missing)}.")
    return found


def _against(pair: Paired | None) -> str:
    """How the first of a table stands to another."""
    if pair is None or not pair.significant:
        return "level"
    return {True: "better", False: "worse", None: "left"}[pair.verdict]


def _second(pair: Paired, metric: Metric, second: str) -> str:
    """How the first and the second differ."""
    if not pair.difference:
        return f"It and the second, {second}, {'are equal on every seed' if pair.alike else 'have the same mean'}."
    said = (
        f"{p_value(pair.adjusted)} after correction, a {size(pair.effect)} effect relative to the spread of the seeds"
    )
    if pair.survivor and not pair.better:
        return f"On the seeds that both finished the second, {second}, is ahead by {gap(pair, metric)}: {said}."
    return f"It and the second, {second}, differ by {gap(pair, metric)}: {said}."


def cautions(table: RankedTable) -> list[str]:
    """What makes a table less than it seems."""
    found = []
    for row in table.rows:
        cell = row.cell
        for name, side in cell.edges.items():
            chosen = cell.chosen
            assert chosen is not None
            tried = "highest" if side == "high" else "lowest"
            found.append(
                f"The best {axis(name)} of {row.optimizer} ({short(chosen.point[name])}) is close to the {tried} "
                f"tried: a {'higher' if side == 'high' else 'lower'} one may be better."
            )
        if cell.unrefined:
            found.append(f"Next to the best learning rate of {row.optimizer} one side was not tried: it may be better.")
        found += incomplete(row)
        if cell.older:
            found.append(f"{cell.older} runs of {row.optimizer} were made with other code or data and are not used.")
    plans = {(row.cell.planned_trials, row.cell.planned_studies) for row in table.rows}
    if len(plans) > 1:
        found.append("The optimizers were not given the same number of trials: the comparison is not fair.")
    if few := table.unequal:
        found.append(f"Few trials of {listed(few)} came anywhere near the best: the search was less use to them.")
    seeds = {row.seeds for row in table.rows if row.test is not None}
    if seeds and min(seeds) < 3:
        found.append("With fewer than 3 seeds hardly any difference can be shown.")
    return found


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


def about_inclusions(found: Sequence[Inclusion]) -> list[str]:
    """Each that is decided, then in how many tables the others are not."""
    decided: dict[tuple[str, str], list[bool]] = {}
    for one in found:
        decided.setdefault((one.general, one.special), []).append(one.found.verdict is not None)
    return [about_inclusion(one) for one in found if one.found.significant] + [
        f"Between {general} and {special}, its special case at α = 0, nothing is decided in {known.count(False)} of "
        f"{len(known)} {plural(len(known), 'table')}."
        for (general, special), known in decided.items()
        if False in known
    ]


def about_inclusion(one: Inclusion) -> str:
    """What it means that an optimizer wins or loses, beyond noise, against a special case of itself."""
    where, pair = one.table.name, one.found
    apart = f"by {gap(pair, one.table.metric)}, {p_value(pair.adjusted)} corrected"
    if pair.verdict is None:
        ahead, behind = (one.general, one.special) if pair.better else (one.special, one.general)
        return (
            f"{where}: {ahead} is ahead of {behind} on the seeds that both finished, {apart}, but nothing is "
            f"decided: {losses(pair, one.general, one.special)}."
        )
    if pair.verdict:
        return f"{where}: {one.general} is better than {one.special}, its special case at α = 0, {apart}."
    return (
        f"{where}: {one.general} contains {one.special} (α = 0) and yet loses to it {apart}. This means that the "
        f"search ({one.trials} trials) was too small for two more hyperparameters, not that {one.special} is better: "
        "with a large enough search, an optimizer cannot lose to a special case of itself."
    )


def about_all(summary: Summary) -> list[str]:
    """The verdict across tables."""
    verdict = summary.verdict
    if not any(row.test is not None for table in summary.tables for row in table.rows):
        return ["No optimizer has a result yet."]
    names = list(verdict.ranks)
    count = len(summary.tables)
    lead, rest = names[0], names[1:3]
    tables = f"{count} {plural(count, 'table')} (one for each task, batch size and length)"
    after = f", before {listed([f'{name} ({short(verdict.ranks[name])})' for name in rest])}" if rest else ""
    found = [f"Over {tables}, {lead} has the best mean rank, {short(verdict.ranks[lead])}{after}."]
    won, lost = verdict.wins[lead], verdict.losses[lead]
    pairs = sum(1 for table in summary.tables for a, _ in table.pairs if a == lead)
    if pairs:
        found.append(
            f"Of its {pairs} {plural(pairs, 'comparison')} with other optimizers it wins {won} and loses {lost} "
            f"significantly, with {pairs - won - lost} undecided."
        )
    edges = sum("lr" in row.cell.edges for table in summary.tables for row in table.rows)
    if edges:
        cells = sum(row.cell.chosen is not None for table in summary.tables for row in table.rows)
        found.append(
            f"In {edges} of {cells} cells the best learning rate is at the edge of the range tried (marked below)."
        )
    return found


def failures(row: Row) -> list[tuple[str, str, int]]:
    """What failed and why, with how often; the most frequent first."""
    runs = row.cell.runs
    found = Counter((run.failure, run.reason or "no reason recorded") for run in runs if run.failure is not None)
    return [(failure, reason, n) for (failure, reason), n in found.most_common()]


def plural(n: int, noun: str) -> str:
    """The noun for n of them."""
    return noun if n == 1 else f"{noun}s"
