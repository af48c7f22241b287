"""From stored records to a summary: means, confidence intervals, ranks."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from itertools import groupby
from statistics import mean, stdev
from typing import TYPE_CHECKING

from scipy.stats import t as student

from thalweg.lab import records, tasks
from thalweg.lab.compare import FIRST_FRESH_SEED, SEARCH_SEED, Cell, Comparison, left_out
from thalweg.lab.engine import DIVERGED, EVALUATIONS, WARMUP
from thalweg.lab.optimizers import LR_FACTOR, SECOND_MOMENT
from thalweg.lab.summary import Curve, Interval, Row, Summary, Table

if TYPE_CHECKING:
    from collections.abc import Sequence


def interval(values: Sequence[float]) -> Interval:
    """Mean and half-width of the 95 % confidence interval, by Student's t.

    >>> interval([1.0, 2.0, 3.0]).mean, round(interval([1.0, 2.0, 3.0]).half_width, 3)
    (2.0, 2.484)
    """
    n = len(values)
    half = float(student.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(mean(values), half, tuple(values))


def summarise(comparison: Comparison, command: str) -> Summary:
    """Everything the report shows, from what is stored now."""
    plan = comparison.plan
    groups = [list(cells) for _, cells in groupby(plan.cells(), key=lambda cell: (cell.task, cell.batch_size))]
    return Summary(
        tables=tuple(_table(comparison, cells) for cells in groups),
        trials=plan.trials,
        seeds=plan.seeds,
        command=command,
        created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        environment=records.environment(),
        protocol=_protocol(plan.trials, plan.seeds),
    )


def _protocol(trials: int, seeds: int) -> tuple[str, ...]:
    return (
        f"Every optimizer is tuned with {trials} trials: one scrambled Sobol sequence (seed {SEARCH_SEED}) over "
        f"learning rate ({LR_FACTOR:g} times below to {LR_FACTOR:g} times above its usual scale), weight decay and "
        "momentum, and with E in front also the gain α(1-β1) and the horizon 1/(1-β1).",
        "An optimizer with more hyperparameters gets no more trials: what E adds to search has to pay for itself.",
        "The best trial is the one with the best validation metric at the end of the schedule, not at its best moment.",
        f"Its setting then trains on {seeds} fresh seeds (from {FIRST_FRESH_SEED}; each seeds initialisation and data "
        "order, and is shared by all optimizers); only these runs ever see the test set.",
        "Intervals are 95 % confidence intervals of the mean over these seeds (Student's t); they say nothing about "
        "the luck of the search itself.",
        f"All share the schedule (linear warm-up over {WARMUP:.0%} of the steps, cosine to zero), the second-moment "
        f"decay ({SECOND_MOMENT:g}) and no weight decay on biases and normalisation parameters.",
        f"A run fails when its loss is not finite or exceeds {DIVERGED:g} times its first value. Failed trials and "
        "failed seeds are counted; an optimizer with failed seeds ranks below those with none.",
        f"The target is a validation metric, checked {EVALUATIONS} times a run; seconds are training time without "
        "evaluation, of runs that shared the machine with others of the same comparison.",
    )


def _table(comparison: Comparison, cells: Sequence[Cell]) -> Table:
    task, data = tasks.load(cells[0].task)
    names = {optimizer: left_out(task.name, optimizer) for optimizer in comparison.plan.optimizers}
    rows = [_row(comparison, cell) for cell in cells]
    return Table(
        task=task.name,
        title=task.title,
        batch_size=cells[0].batch_size,
        train_examples=len(data.train),
        steps=cells[0].steps,
        metric=task.metric,
        target=task.budgets[cells[0].batch_size].target,
        rows=tuple(sorted(rows, key=lambda row: _rank(row, task.metric.goal))),
        left_out={optimizer: why for optimizer, why in names.items() if why is not None},
    )


def _rank(row: Row, goal: str) -> tuple[int, float]:
    value = math.inf if row.test is None else -row.test.mean if goal == "max" else row.test.mean
    return row.failed_seeds if row.test is not None else row.seeds + 1, value


def _row(comparison: Comparison, cell: Cell) -> Row:
    trials = comparison.trials(cell)
    best = comparison.best(cell)
    jobs = comparison.fresh_seeds(cell)
    seeds = [(job.folder, found) for job in jobs if (found := records.result(job.folder, job.run)) is not None]
    finished = [(folder, result) for folder, result in seeds if result["status"] == "finished"]
    results = [result for _, result in finished]
    reached = [result for result in results if result["steps_to_target"] is not None]
    histories = [records.metrics(folder) for folder, _ in finished]
    return Row(
        optimizer=cell.optimizer,
        settings=best,
        test=interval([result["test"] for result in results]) if results else None,
        steps_to_target=mean(result["steps_to_target"] for result in reached) if reached else None,
        seconds_to_target=mean(result["seconds_to_target"] for result in reached) if reached else None,
        reached=len(reached),
        seeds=len(seeds),
        failed_seeds=len(seeds) - len(finished),
        trials=len(trials),
        failed_trials=sum(value is None for _, value in trials),
        seconds=mean(result["seconds"] for result in results) if results else None,
        validation=_curve(histories, "validation"),
        train_loss=_curve(histories, "loss"),
        tuning=tuple(trials),
    )


def _curve(histories: Sequence[Sequence[dict[str, float]]], key: str) -> Curve | None:
    if not histories:
        return None
    intervals = [interval([line[key] for line in lines]) for lines in zip(*histories, strict=True)]
    return Curve(
        steps=tuple(int(line["step"]) for line in histories[0]),
        mean=tuple(i.mean for i in intervals),
        low=tuple(i.mean - (i.half_width or 0.0) for i in intervals),
        high=tuple(i.mean + (i.half_width or 0.0) for i in intervals),
    )
