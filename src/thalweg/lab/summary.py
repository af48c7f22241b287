"""What a comparison found, as plain data: the terminal table and the HTML report draw this and nothing else.

Built by :func:`summarise` from what :mod:`thalweg.lab.results` reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import mean, stdev

from scipy.stats import t as student

from thalweg.lab import results
from thalweg.lab.metric import Metric


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with the half-width of its 95 % confidence interval (``None``: fewer than two values)."""

    mean: float
    half_width: float | None
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean and 95 % confidence limits over the seeds, at each recorded step."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One optimizer in one table.

    ``test`` is ``None`` when no seed finished, ``settings`` is ``None`` when no trial did.
    ``steps_to_target`` and ``seconds_to_target`` average over the ``reached`` seeds that got there.
    """

    optimizer: str
    settings: dict[str, float] | None
    test: Interval | None
    steps_to_target: float | None
    seconds_to_target: float | None
    reached: int
    seeds: int
    failed_seeds: int
    trials: int
    failed_trials: int
    seconds: float | None
    validation: Curve | None
    train_loss: Curve | None
    tuning: tuple[tuple[dict[str, float], float | None], ...] = ()
    """Every trial: its settings and its validation metric (``None``: failed)."""


@dataclass(frozen=True, slots=True)
class Table:
    """All optimizers on one task at one batch size, best first."""

    task: str
    title: str
    batch_size: int
    train_examples: int | None
    steps: int
    metric: Metric
    target: float
    rows: tuple[Row, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    """Optimizers that do not apply to this task, and why."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a report shows."""

    tables: tuple[Table, ...]
    trials: int
    seeds: int
    command: str
    created: str
    environment: dict[str, str]
    protocol: tuple[str, ...]
    """The rules of the comparison, one sentence each."""


def interval(values: Sequence[float]) -> Interval:
    """Mean and half-width of the 95 % confidence interval, by Student's t.

    >>> interval([1.0, 2.0, 3.0]).mean, round(interval([1.0, 2.0, 3.0]).half_width, 3)
    (2.0, 2.484)
    """
    n = len(values)
    half = float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(mean(values), half, tuple(values))


def summarise(found: results.Results, command: str) -> Summary:
    """Everything the report shows, from what is stored."""
    cells = [cell for table in found.tables for cell in table.cells]
    return Summary(
        tables=tuple(_table(table) for table in found.tables),
        trials=max((cell.planned_trials for cell in cells), default=0),
        seeds=max((cell.planned_seeds for cell in cells), default=0),
        command=command,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        environment=_environment(found),
        protocol=_protocol(max((cell.planned_studies for cell in cells), default=0)),
    )


def _environment(found: results.Results) -> dict[str, str]:
    """Where the runs ran: each value once."""
    values: dict[str, dict[str, None]] = {}
    for run in found.runs:
        for name, value in run.environment.items():
            values.setdefault(name, {})[value] = None
    return {name: "; ".join(different) for name, different in values.items()}


def _protocol(studies: int) -> tuple[str, ...]:
    return (
        f"Every optimizer is tuned in {studies} studies of as many trials each: points of scrambled Halton sequences "
        "over learning rate, weight decay, momentum and second-moment decay, and with E in front also the gain "
        "α(1-β1) and the horizon 1/(1-β1). On the axes that optimizers share they try the same shares of their ranges.",
        "Where the best learning rate of a study lies at an edge of its range, the study goes on beyond it with half "
        "as many trials, at most twice.",
        "The best trial is the one with the best validation metric at the end of the schedule, not at its best moment; "
        "the setting taken is that of the study whose best is the median of the studies' bests.",
        "It then trains on fresh seeds (each seeds initialisation and data order, and is shared by all optimizers); "
        "only these runs ever see the test set.",
        "Intervals are 95 % confidence intervals of the mean over these seeds (Student's t).",
        "Seconds to target are steps to target times the median second of a step in a separate pass, in which all "
        "optimizers take turns.",
    )


def _table(table: results.Table) -> Table:
    rows = [_row(table, cell) for cell in table.cells if cell.left_out is None]
    return Table(
        task=table.task,
        title=table.title,
        batch_size=table.batch_size,
        train_examples=table.train_examples,
        steps=table.steps,
        metric=table.metric,
        target=math.nan if table.target is None else table.target,
        rows=tuple(sorted(rows, key=lambda row: _rank(row, table.metric))),
        left_out={cell.optimizer: cell.left_out for cell in table.cells if cell.left_out is not None},
    )


def _rank(row: Row, metric: Metric) -> tuple[int, float]:
    value = math.inf if row.test is None else -row.test.mean if metric.goal == "max" else row.test.mean
    return row.failed_seeds if row.test is not None else row.seeds + 1, value


def _row(table: results.Table, cell: results.Cell) -> Row:
    chosen = cell.chosen
    finished = [run for run in cell.seeds if run.finished]
    tests = [run.test for run in finished if run.test is not None]
    steps = [run.steps_to_target for run in finished if run.steps_to_target is not None]
    second = sorted(cell.seconds_per_step)[len(cell.seconds_per_step) // 2] if cell.seconds_per_step else None
    return Row(
        optimizer=cell.optimizer,
        settings=None if chosen is None else chosen.settings,
        test=interval(tests) if tests else None,
        steps_to_target=mean(steps) if steps else None,
        seconds_to_target=mean(steps) * second if steps and second is not None else None,
        reached=len(steps),
        seeds=len(cell.seeds),
        failed_seeds=len(cell.seeds) - len(finished),
        trials=len(cell.trials),
        failed_trials=sum(not run.finished for run in cell.trials),
        seconds=mean(run.seconds for run in finished) if finished else None,
        validation=_curve(finished, "validation"),
        train_loss=_curve(finished, "loss"),
        tuning=tuple((run.settings, run.validation) for run in cell.trials),
    )


def _curve(runs: Sequence[results.Run], key: str) -> Curve | None:
    histories = [run.history for run in runs]
    if not histories or len({tuple(one.step for one in history) for history in histories}) != 1 or not histories[0]:
        return None
    intervals = [interval([getattr(one, key) for one in ones]) for ones in zip(*histories, strict=True)]
    return Curve(
        steps=tuple(one.step for one in histories[0]),
        mean=tuple(i.mean for i in intervals),
        low=tuple(i.mean - (i.half_width or 0.0) for i in intervals),
        high=tuple(i.mean + (i.half_width or 0.0) for i in intervals),
    )
