"""The tables at the end of a comparison, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table as Grid

from thalweg.report import words

if TYPE_CHECKING:
    from thalweg.report.summary import RankedTable, Row, Summary


def grid(table: RankedTable, summary: Summary, console: Any) -> Grid:
    """One table of a comparison; the settings only where there is room for them."""
    title = (
        f"{table.task}, batch size {table.batch_size}: {words.labelled(table.metric.name, table.metric)} after "
        f"{table.steps} steps, tuned with {summary.trials} {words.plural(summary.trials, 'trial')} a study "
        "(steps and seconds to the target, failed seeds + failed trials)"
    )
    found = Grid(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    found.collapse_padding = True
    found.add_column("optimizer", overflow="fold")  # a class has a long name, and may take two lines
    found.add_column("mean (95 % interval)", justify="right", no_wrap=True)
    for name in ("steps", "seconds", "reached", "failed"):
        found.add_column(name, justify="right", no_wrap=True)
    wide = console.width >= 140
    if wide:
        found.add_column("best setting")
    for row in table.rows:
        found.add_row(*_texts(row)[: None if wide else -1])
    for name, why in table.left_out.items():
        found.add_row(name, f"left out: {why}")
    return found


def _texts(row: Row) -> tuple[str, ...]:
    return (
        row.optimizer,
        "none finished" if row.test is None else words.interval(row.test),
        "" if row.steps_to_target is None else f"{words.bound(row)}{row.steps_to_target.mean:.0f}",
        "" if row.seconds_to_target is None else f"{words.bound(row)}{words.short(row.seconds_to_target.mean)}",
        words.reached(row),
        f"{row.failed_seeds} + {row.failed_trials}",
        "" if row.settings is None else " ".join(f"{name}={value:.3g}" for name, value in row.settings.items()),
    )
