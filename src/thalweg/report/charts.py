"""What is drawn: each chart of a table, and the performance profile over all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from thalweg.report import palette, words
from thalweg.report.svg import AxisScale, Plot, whiskers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from markupsafe import Markup

    from thalweg.report.summary import Curve, RankedTable, Row

SYMBOLS = ("circle", "square", "diamond", "up", "down", "star", "plus")
HORIZON = 8.0  # times the fastest, where performance profiles end


class Style(NamedTuple):
    """How one optimizer is drawn, in every report the same: the class of its colour and dash, and its symbol."""

    css: str
    symbol: str
    ours: bool


Styles = dict[str, Style]


@dataclass(frozen=True)
class Chart:
    """A chart with its heading; ``views`` are (name, picture), of which one shows at a time."""

    title: str
    note: str
    views: tuple[tuple[str, Markup], ...]


def styles(optimizers: Iterable[str]) -> Styles:
    """A style for each name; ALTO and the E family come first and are drawn heavier than the baselines."""
    names = sorted(set(optimizers), key=lambda name: (not palette.is_ours(name), name))
    return {
        name: Style(f"s{k}{' ours' if palette.is_ours(name) else ''}", SYMBOLS[k % len(SYMBOLS)], palette.is_ours(name))
        for name, k in palette.styles(names).items()
    }


def of_table(table: RankedTable, drawn: Styles) -> list[Chart]:
    """The charts of a table, without those that have nothing to show."""
    quantity = words.quantity(table.metric)
    validation = words.labelled(f"validation {quantity}", table.metric)
    band = "Mean over the fresh seeds with its 95 % band; geometric on a logarithmic axis."
    charts = [
        Chart(
            f"Validation {quantity} during training",
            f"{band} Dashed: the target.",
            _curves(table, drawn, lambda row: row.validation, validation, table.metric.log, True),
        ),
        Chart(
            "Training loss during training",
            band,
            _curves(table, drawn, lambda row: row.train_loss, "training loss", True, False),
        ),
        Chart(
            "Best of n trials",
            "Mean and quartiles of the best of n trials, drawn at random from those that were run. Two more "
            "hyperparameters need more trials: where a curve still improves at its end, the search was too short.",
            _best_of(table, drawn, validation),
        ),
        Chart(
            "Sensitivity to each hyperparameter",
            "Every trial against one hyperparameter; the chosen one is ringed. Crosses at the worst edge are failed "
            "trials; values much worse than the rest are drawn at the edge.",
            _sensitivity(table, drawn, validation),
        ),
    ]
    return [chart for chart in charts if chart.views]


def overview(table: RankedTable, drawn: Styles) -> Markup | None:
    """Each optimizer's test metric: mean, interval, seeds."""
    found = [(row, row.test) for row in table.rows if row.test is not None and math.isfinite(row.test.mean)]
    means = [test.mean for _, test in found]
    if not means:
        return None
    everything = [v for _, test in found for v in (test.mean, *test.values, test.low, test.high) if v is not None]
    shown = _without_outliers(everything, [v for _, test in found for v in (test.mean, *test.values)], table)
    scale = AxisScale.over(shown, log=table.metric.log)
    if scale is None:
        return None
    rows = [
        (row.optimizer, drawn[row.optimizer].css, drawn[row.optimizer].symbol, test.mean, test.low, test.high,
         test.values)
        for row, test in found
    ]  # fmt: skip
    name = f"{table.metric.name}{words.units(table.metric)}"
    return whiskers(rows, scale, name, f"{name} of each optimizer on {table.name}")


def _without_outliers(everything: Sequence[float], values: Sequence[float], table: RankedTable) -> list[float]:
    """What a scale should show: not an interval or an optimizer that would press all others into a corner."""
    sign = 1.0 if table.metric.goal == "max" else -1.0
    log = table.metric.log and min(values) > 0
    ordered = sorted((math.log(v) if log else v) * sign for v in values)
    top, middle = ordered[-1], ordered[len(ordered) // 2]
    reach = 4.0 * (top - middle) + abs(top) * 1e-9
    if not reach:
        return list(values)
    low, high = middle - reach, top + reach
    return [v for v in everything if (v > 0 or not log) and low <= (math.log(v) if log else v) * sign <= high]


def _curves(
    table: RankedTable, drawn: Styles, pick: Callable[[Row], Curve | None], ylabel: str, log: bool, target: bool
) -> tuple[tuple[str, Markup], ...]:
    curves = {row.optimizer: curve for row in table.rows if (curve := pick(row)) is not None}
    settled = [
        mean
        for curve in curves.values()
        for step, mean in zip(curve.steps, curve.mean, strict=True)
        if step >= table.steps / 10
    ]
    if target and table.target is not None:
        settled.append(table.target)
    y = AxisScale.over(_central(settled), log=log)
    if y is None:
        return ()
    found = []
    for name in ("steps", "examples", "seconds"):
        x = AxisScale.over([0.0, *(v for curve in curves.values() for v in getattr(curve, name))], room=0.0)
        if x is None:
            continue
        plot = Plot(x, y, f"training {name}", ylabel, f"{ylabel} by training {name}, {table.name}")
        for optimizer, curve in curves.items():
            if curve.low != curve.high:
                band = list(zip(getattr(curve, name), curve.low, curve.high, strict=True))
                plot.band(band, f"b {drawn[optimizer].css}")
        for k, (optimizer, curve) in enumerate(curves.items()):
            points = list(zip(getattr(curve, name), curve.mean, strict=True))
            plot.line(points, f"l {drawn[optimizer].css}")
            for point in points[1 + k % 3 :: max(3, len(points) // 5)]:
                plot.mark(*point, f"m {drawn[optimizer].css}", drawn[optimizer].symbol)
        if target and table.target is not None:
            plot.level(table.target, "target", "target")
        found.append((f"by {name}", plot.draw()))
    return tuple(found)


def _central(values: Sequence[float]) -> list[float]:
    """Without the far end of what is spread over more than it helps to see."""
    finite = sorted(v for v in values if math.isfinite(v))
    if len(finite) < 20:
        return finite
    low, high = np.quantile(finite, [0.02, 0.98])
    return [v for v in finite if low <= v <= high]


def _best_of(table: RankedTable, drawn: Styles, ylabel: str) -> tuple[tuple[str, Markup], ...]:
    curves = {row.optimizer: row.best_of for row in table.rows if row.best_of}
    y = AxisScale.over(_central([one.expected for curve in curves.values() for one in curve]), log=table.metric.log)
    x = AxisScale.over([one.n for curve in curves.values() for one in curve], log=True, room=0.0)
    if x is None or y is None:
        return ()
    plot = Plot(x, y, "trials", ylabel, f"Best of n trials, {table.name}")
    for optimizer, curve in curves.items():
        plot.band([(one.n, one.low, one.high) for one in curve], f"b {drawn[optimizer].css}")
    for optimizer, curve in curves.items():
        plot.line([(one.n, one.expected) for one in curve], f"l {drawn[optimizer].css}")
    return (("", plot.draw()),)


def _sensitivity(table: RankedTable, drawn: Styles, ylabel: str) -> tuple[tuple[str, Markup], ...]:
    finished = [run for row in table.rows for run in row.cell.trials if run.validation is not None]
    if not finished:
        return ()
    sign = -1.0 if table.metric.goal == "max" else 1.0
    ordered = sorted((run.validation or 0.0 for run in finished), key=lambda value: sign * value)
    y = AxisScale.over(ordered[: max(2, math.ceil(0.8 * len(ordered)))], log=table.metric.log)
    if y is None:
        return ()
    worst = y.low if table.metric.goal == "max" else y.high
    axes = {axis.name: axis for row in table.rows for axis in row.cell.space}
    found = []
    for name, axis in axes.items():
        placed = [run.point[name] for row in table.rows for run in row.cell.trials if name in run.point]
        x = AxisScale.over(placed, log=axis.log)
        if x is None:
            continue
        label = words.axis(name)
        plot = Plot(x, y, label, ylabel, f"{ylabel} by {label}, {table.name}")
        for row in table.rows:
            style, chosen = drawn[row.optimizer], row.cell.chosen
            for run in row.cell.trials:
                if name not in run.point:
                    continue
                says = f"{row.optimizer}: {words.settings(run.settings)}"
                value = worst if run.validation is None else run.validation
                symbol = "cross" if run.validation is None else style.symbol
                plot.mark(run.point[name], value, f"p {style.css}", symbol, says)
            if chosen is not None and chosen.validation is not None and name in chosen.point:
                plot.mark(chosen.point[name], chosen.validation, f"c {style.css}", "ring", f"{row.optimizer}: chosen")
        found.append((label, plot.draw()))
    return tuple(found)


def profiles(ratios: Mapping[str, Sequence[float]], drawn: Styles, unit: str) -> Markup | None:
    """The share of tables in which an optimizer's median seed got to the target within τ times the fastest's time."""
    if not any(math.isfinite(ratio) for own in ratios.values() for ratio in own):
        return None
    plot = Plot(
        AxisScale(1.0, HORIZON, True), AxisScale(0.0, 1.04), f"times the fastest optimizer's {unit} to the target",
        "share of tables", f"Performance profile in {unit}",
    )  # fmt: skip
    for name, own in ratios.items():
        points, reached = [], 0.0
        for ratio in sorted({1.0, *(r for r in own if r <= HORIZON), HORIZON}):
            reached = sum(r <= ratio * (1 + 1e-12) for r in own) / len(own)
            points.append((ratio, reached))
        plot.line(points, f"l {drawn[name].css}", steps=True)
    return plot.draw()
