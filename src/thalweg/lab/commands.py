"""What the command line does, with progress on a terminal and a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as Grid

from thalweg.lab.compare import Comparison, Plan
from thalweg.lab.report import write_report
from thalweg.lab.results import summarise
from thalweg.lab.work import default_jobs

if TYPE_CHECKING:
    import argparse

    from thalweg.lab.summary import Row, Summary, Table


def compare(options: argparse.Namespace, command: str) -> None:
    """``thalweg compare``: tune, train, tabulate, report."""
    plan = Plan(
        tasks=tuple(dict.fromkeys(options.tasks)),
        batch_sizes=tuple(options.batch_size) if options.batch_size else None,
        optimizers=options.optimizers,
        trials=options.trials,
        seeds=options.seeds,
        steps=options.steps,
    )
    comparison = Comparison(plan, options.out or Path("runs") / "-".join(plan.tasks))
    processes = options.jobs or default_jobs()
    console = Console(highlight=False)
    runs = len(list(plan.cells())) * (plan.trials + plan.seeds)
    console.print(
        f"{len(plan.optimizers)} optimizers on {', '.join(plan.tasks)}, tuned with {plan.trials} trials each, then "
        f"{plan.seeds} fresh seeds: {runs} runs, {processes} at a time, in {comparison.root}"
    )
    with _bar(console) as bar:
        total = comparison.cost()
        task = bar.add_task("training", total=total)
        comparison.run(processes, lambda cost: _advance(bar, task, cost))
        bar.update(task, completed=total)
    _conclude(comparison, command, console)


def report(folder: Path) -> None:
    """``thalweg report``: the report of what is stored."""
    comparison = Comparison(Plan.read(folder), folder)
    _conclude(comparison, f"thalweg report {folder}", Console(highlight=False))


def _conclude(comparison: Comparison, command: str, console: Console) -> None:
    summary = summarise(comparison, command)
    for table in summary.tables:
        console.print(_grid(table, summary, console))
    path = write_report(summary, comparison.root / "report.html")
    console.print(f"report: {path.resolve()}", soft_wrap=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=120.0,
    )


def _advance(bar: Progress, task: TaskID, cost: float) -> None:
    """Advance the bar; where there is no terminal to draw it on, print each tenth."""
    before = bar.tasks[task].percentage
    bar.advance(task, cost)
    after = bar.tasks[task].percentage
    if not bar.console.is_terminal and int(before / 10) < int(after / 10) < 10:
        bar.console.print(f"training: {after:.0f} %")


def _grid(table: Table, summary: Summary, console: Console) -> Grid:
    unit = f" ({table.metric.unit})" if table.metric.unit else ""
    title = (
        f"{table.task}, batch size {table.batch_size}: {table.metric.name}{unit} after {table.steps} steps, "
        f"tuned with {summary.trials} trials each"
    )
    grid = Grid(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("optimizer", no_wrap=True)
    grid.add_column("mean ± 95 % CI", justify="right", no_wrap=True)
    for name in ("steps to target", "seconds to target", "reached", "failed seeds", "failed trials"):
        grid.add_column(name, justify="right")
    wide = console.width >= 140
    if wide:
        grid.add_column("best setting")
    for row in table.rows:
        grid.add_row(*_texts(row)[: None if wide else -1])
    for name, why in table.left_out.items():
        grid.add_row(name, f"left out: {why}")
    return grid


def _texts(row: Row) -> tuple[str, ...]:
    half = "" if row.test is None or row.test.half_width is None else f" ± {row.test.half_width:.2g}"
    return (
        row.optimizer,
        "none finished" if row.test is None else f"{row.test.mean:.4g}{half}",
        "" if row.steps_to_target is None else f"{row.steps_to_target:.0f}",
        "" if row.seconds_to_target is None else f"{row.seconds_to_target:.2f}",
        f"{row.reached}/{row.seeds}",
        str(row.failed_seeds),
        f"{row.failed_trials}/{row.trials}",
        "" if row.settings is None else " ".join(f"{name}={value:.3g}" for name, value in row.settings.items()),
    )
