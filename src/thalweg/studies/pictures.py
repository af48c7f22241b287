"""What of a recipe is better looked at: training curves, the metric over batch sizes, α against β1."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.report import drawing, palette, words
from thalweg.report.decisions import Outcome
from thalweg.report.drawing import save
from thalweg.studies.sections import Picture, short_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thalweg.report.summary import RankedTable, Row, Summary


_EMPTY: dict[str, Any] = {"facecolor": "none", "edgecolor": palette.INK, "linewidth": 0.0, "alpha": 0.4, "zorder": 0}


def draw(summary: Summary, folder: Path) -> tuple[Picture, ...]:
    """The pictures of a comparison, written to ``folder``."""
    found = []
    grids = [table for table in summary.tables if len(list(_placed(table))) >= 6]
    if grids:
        found.append(_heat_maps(grids, folder / "alpha-beta.svg"))
    elif summary.tables:
        found.append(_curves(summary.tables, folder / "curves.svg"))
    for task in dict.fromkeys(table.task for table in summary.tables):
        own = [table for table in summary.tables if table.task == task]
        sizes = {table.batch_size for table in own}
        by = "batch size" if len(sizes) > 1 else "steps"
        if len(own) >= 3 and len(sizes) in (1, len(own)):  # one quantity alone changes from point to point
            found.append(_scaling(own, by, folder / f"scaling-{task}.svg"))
    return tuple(found)


def _styles(names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: palette.line(name, style) for name, style in palette.styles(names).items()}


def _names(tables: Any) -> list[str]:
    return list(dict.fromkeys(row.optimizer for table in tables for row in table.rows))


def _labels(names: list[str]) -> dict[str, str]:
    return {
        name: short.replace("alpha=", "α=").replace("beta=", "β1=").replace(":", " ").removeprefix("thalweg.")
        for name, short in short_names(names).items()
    }


def _curves(tables: tuple[RankedTable, ...], path: Path) -> Picture:
    """Training loss and validation metric by epoch, a column a table."""
    across = min(3, len(tables))
    down = math.ceil(len(tables) / across)
    figure = drawing.figure(3.9 * across, 6.2 * down)
    axes = figure.subplots(2 * down, across, squeeze=False)
    for spare in range(len(tables), across * down):
        for line in range(2):
            axes[2 * (spare // across) + line][spare % across].set_axis_off()
    styles, labels = _styles(_names(tables)), _labels(_names(tables))
    lengths = Counter((table.task, table.batch_size) for table in tables)
    for k, table in enumerate(tables):
        top, column = 2 * (k // across), k % across
        long = f", {table.steps} steps" if lengths[table.task, table.batch_size] > 1 else ""
        epochs = table.batch_size / max(1, table.train_examples)
        for row in table.rows:
            for line, curve in enumerate((row.train_loss, row.validation)):
                if curve is not None:
                    axes[top + line][column].plot(
                        [step * epochs for step in curve.steps], curve.mean, label=labels[row.optimizer],
                        markevery=0.2, **styles[row.optimizer],
                    )  # fmt: skip
        axes[top][column].set(
            title=f"{table.task}, batch {table.batch_size}{long}", yscale="log", ylabel="training loss"
        )
        label = words.labelled(table.metric.name.replace("test ", "validation "), table.metric)
        axes[top + 1][column].set(xlabel="epochs", ylabel=label, yscale="log" if table.metric.log else "linear")
        _zoom(axes[top + 1][column], table)
        for line in range(2):
            axes[top + line][column].grid(alpha=0.3)
    drawing.legend(figure, "outside lower center", columns=4)
    save(figure, path)
    return Picture(path, "Training loss and validation metric by epoch, mean over the fresh seeds: note which "
                         "optimizer is ahead early, and which at the end.")  # fmt: skip


def _zoom(axes: Any, table: RankedTable) -> None:
    """Show what happens after the first tenth."""
    values = [
        mean
        for row in table.rows
        if row.validation is not None
        for step, mean in zip(row.validation.steps, row.validation.mean, strict=True)
        if step >= table.steps / 10 and math.isfinite(mean)
    ]
    if values and table.metric.goal == "max" and not table.metric.log and max(values) > min(values):
        low, high = float(np.quantile(values, 0.1)), max(values)
        room = 0.05 * (high - low)
        axes.set_ylim(low - room, high + room)


def _scaling(tables: list[RankedTable], by: str, path: Path) -> Picture:
    """The test metric of each optimizer over the batch sizes of a task, or over its lengths."""
    metric = tables[0].metric
    sizes = {id(table): table.steps if by == "steps" else table.batch_size for table in tables}
    figure = drawing.figure(6.4, 4.4)
    axes = figure.subplots()
    names = _names(tables)
    labels = _labels(names)
    for i, (name, style) in enumerate(_styles(names).items()):
        rows = [(sizes[id(table)], row) for table in tables if (row := table.row(name)) is not None]
        known = [(size, row.test) for size, row in rows if row.test is not None]
        if known:
            shift = 1.03 ** (i - len(names) / 2)
            x = [size * shift for size, _ in known]
            y, bars = [test.mean for _, test in known], np.transpose([test.reach for _, test in known])
            axes.errorbar(x, y, yerr=bars, label=labels[name], capsize=2, **style)
    axes.set(xscale="log", xlabel=by, ylabel=words.labelled(metric.name, metric))
    axes.set_xticks([*sizes.values()], [f"{size:,}" for size in sizes.values()], minor=False)
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)
    over, note = ("steps", "whether optimizers meet as training grows longer") if by == "steps" else (
        "batch sizes", "which optimizer holds up as the batch grows")  # fmt: skip
    return Picture(path, f"{metric.name[:1].upper()}{metric.name[1:]} over {over} on {tables[0].task}, mean and "
                         f"95 % interval, each point from a search of its own: note {note}.")  # fmt: skip


def _placed(table: RankedTable) -> Iterator[tuple[float, float, Row]]:
    """α, β1 and the row, where both are given."""
    for row in table.rows:
        given = dict(pair.split("=") for pair in row.optimizer.split(":")[1:])
        if {"alpha", "beta"} <= set(given) and "|" not in given["alpha"] + given["beta"]:
            yield float(given["alpha"]), float(given["beta"]), row


def _heat_maps(tables: list[RankedTable], path: Path) -> Picture:
    """What is gained over α = 0, over gain and β1, with α, the test metric and the verdict written in each field.

    The colours, one scale for all tables, end at the best gain or the median distance, whichever is larger: a few
    fields far below would take all. What was not run is hatched.
    """
    figure = drawing.figure(6.2 * len(tables), 4.4)
    fields = [_fields(table) for table in tables]
    gained = np.array([over for own in fields for *_, over, _ in own])
    end = max(float(gained.max(initial=0.0)), float(np.median(abs(gained)))) or 1.0
    for axes, table, own in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, fields, strict=True):
        gains, betas = sorted({field[0] for field in own}), sorted({field[1] for field in own})
        drawn = np.full((len(betas), len(gains)), np.nan)
        for gain, beta, alpha, mean, over, mark in own:
            x, y = gains.index(gain), betas.index(beta)
            drawn[y, x] = over
            axes.text(
                x, y, f"α={alpha:g}\n{mark}{mean:.4g}", ha="center", va="center", fontsize=8,
                color="white" if abs(over) > 0.6 * end else palette.ON_BRIGHT,
            )  # fmt: skip
        image = axes.imshow(drawn, cmap="PuOr_r", vmin=-end, vmax=end, aspect="auto", zorder=1)
        axes.fill_between([-0.5, len(gains) - 0.5], -0.5, len(betas) - 0.5, hatch="//", **_EMPTY)
        axes.set_xticks(range(len(gains)), [f"{gain:g}" for gain in gains])
        axes.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.set(xlabel="gain α(1 - β1)", ylabel="β1", title=_heading(table))
    figure.colorbar(
        image, ax=figure.axes, extend="min" if gained.min() < -end else "neither",
        label=f"{tables[0].metric.name}, better than α = 0 ({words.points(tables[0].metric).strip()})",
    )  # fmt: skip
    save(figure, path)
    return Picture(
        path,
        "The test metric over α and β1, with the learning rate tuned for each field: gains below 0 explore, the others "
        "exploit. Orange is better than α = 0; ✓ and ✗ are decided, by the full report's correction; hatched was not "
        "run.",
    )


def _fields(table: RankedTable) -> list[tuple[float, float, float, float, float, str]]:
    """Gain, β1, α, the mean test metric, by how much it is better than at α = 0 and whether that is decided.

    Without α = 0 in the table it is the mean field that they are beside.
    """
    base, sign = _base(table), 1.0 if table.metric.goal == "max" else -1.0
    known = [(alpha, beta, row.optimizer, row.test.mean) for alpha, beta, row in _placed(table) if row.test is not None]
    zero = float(np.mean([mean for *_, mean in known])) if base is None or base.test is None else base.test.mean
    found = []
    for alpha, beta, name, mean in known:
        pair = None if base is None else table.pairs.get((name, base.optimizer))
        mark = "" if pair is None or pair.verdict not in (Outcome.BETTER, Outcome.WORSE) else words.mark(pair) + " "
        found.append((float(f"{alpha * (1.0 - beta):.1g}"), beta, alpha, mean, sign * (mean - zero), mark))
    return found


def _base(table: RankedTable) -> Row | None:
    """That of α = 0, which is LAMB."""
    return next((row for row in table.rows if row.optimizer.split(":")[0] == "lamb" and row.test is not None), None)


def _heading(table: RankedTable) -> str:
    title, base = f"{table.task}, batch {table.batch_size}", _base(table)
    if base is None or base.test is None:
        return title
    return f"{title} (LAMB, α = 0: {base.test.mean:.4g}{words.units(table.metric)})"
