"""What a comparison found, as plain data: the terminal table and the HTML report draw this and nothing else.

Built by :func:`summarise` from what :mod:`thalweg.records.reading` reads, with :mod:`thalweg.report.statistics`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from statistics import median

from thalweg.records import results
from thalweg.records.metric import Metric
from thalweg.report.rankings import BestOf, best_of_n, mean_ranks, median_best, median_time, profile
from thalweg.report.statistics import (
    Interval,
    Paired,
    all_pairs,
    correct,
    interval,
    restricted_mean,
    special_case,
)

LOSS = Metric("training loss", "min", log=True)


@dataclass(frozen=True, slots=True)
class Curve:
    """Mean and 95 % limits over the seeds at each recorded step.

    ``seconds`` are the steps times the median second of a step in the timing pass; where there was none, the mean of
    what the runs themselves took.
    """

    steps: tuple[int, ...]
    examples: tuple[int, ...]
    seconds: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One optimizer in one table.

    ``test`` is None when no seed finished. ``steps_to_target`` and ``seconds_to_target`` are restricted means: a seed
    that never got there counts with the whole run; they are None where there is no target, no seed, or no timing.
    ``reached`` is how many seeds got there, None without a target. ``tuned`` is the median of the studies' bests.
    ``standing`` is "first", "level" (not decided against the first), "behind" (worse, decided), or "" (no result).
    """

    cell: results.Cell
    test: Interval | None
    steps_to_target: Interval | None
    seconds_to_target: Interval | None
    step_seconds: float | None
    reached: int | None
    failed_seeds: int
    failed_trials: int
    tuned: float | None
    best_of: tuple[BestOf, ...]
    validation: Curve | None
    train_loss: Curve | None
    standing: str = ""

    @property
    def optimizer(self) -> str:
        """Its name."""
        return self.cell.optimizer

    @property
    def settings(self) -> dict[str, float] | None:
        """Of the trial that was chosen; None where no trial finished."""
        return None if self.cell.chosen is None else self.cell.chosen.settings

    @property
    def seeds(self) -> int:
        """How many fresh seeds are complete."""
        return len(self.cell.seeds)

    @property
    def trials(self) -> int:
        """How many trials are complete."""
        return len(self.cell.trials)


@dataclass(frozen=True, slots=True)
class RankedTable(results.Table):
    """A table of the results with its rows, best first; ``pairs`` compares any two optimizers."""

    rows: tuple[Row, ...]
    left_out: dict[str, str]
    pairs: dict[tuple[str, str], Paired]

    @property
    def name(self) -> str:
        """Task, batch size and length, as a heading."""
        length = f"{self.steps} steps" if self.budget == "custom" else f"{self.budget} ({self.steps} steps)"
        return f"{self.task}, batch size {self.batch_size}, {length}"

    @property
    def epochs(self) -> float:
        """How often the training set is seen."""
        return self.steps * self.batch_size / max(1, self.train_examples)

    def row(self, optimizer: str) -> Row | None:
        """That of an optimizer."""
        return next((row for row in self.rows if row.optimizer == optimizer), None)


@dataclass(frozen=True, slots=True)
class Inclusion:
    """An optimizer beside the one that it contains as a special case, in one table."""

    table: RankedTable
    general: str
    special: str
    found: Paired
    trials: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds across tables.

    ``ranks`` are mean ranks, best first; ``tables`` in how many tables each took part; ``firsts`` how often it ranked
    first; ``wins`` and ``losses`` how many of its pairs are decided, by
    :attr:`~thalweg.report.statistics.Paired.verdict`. ``steps`` and ``seconds`` are the performance profiles of the
    median seed's way to the target.
    """

    ranks: dict[str, float]
    tables: dict[str, int]
    firsts: dict[str, int]
    wins: dict[str, int]
    losses: dict[str, int]
    steps: dict[str, tuple[float, ...]]
    seconds: dict[str, tuple[float, ...]]
    inclusions: tuple[Inclusion, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """An environment that runs recorded, and how many of them it was."""

    label: str
    environment: dict[str, str]
    runs: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a report shows."""

    tables: tuple[RankedTable, ...]
    verdict: Verdict
    trials: int
    studies: int
    seeds: int
    command: str
    created: str
    machines: tuple[Machine, ...]
    problems: tuple[str, ...]

    def machine_of(self, run: results.Run) -> str:
        """The label of where a run ran."""
        return next((one.label for one in self.machines if one.environment == run.environment), "")


def summarise(found: results.Results, command: str) -> Summary:
    """Everything the report shows, from what is stored."""
    cells = [cell for table in found.tables for cell in table.cells]
    tables = tuple(_table(table) for table in found.tables)
    return Summary(
        tables=tables,
        verdict=_verdict(tables),
        trials=max((cell.planned_trials for cell in cells), default=0),
        studies=max((cell.planned_studies for cell in cells), default=0),
        seeds=max((cell.planned_seeds for cell in cells), default=0),
        command=command,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machines=_machines(found.runs),
        problems=found.problems,
    )


def _machines(runs: Iterable[results.Run]) -> tuple[Machine, ...]:
    counts = Counter(tuple(run.environment.items()) for run in runs)
    return tuple(Machine(_letter(i), dict(key), count) for i, (key, count) in enumerate(counts.most_common()))


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else _letter(i // 26 - 1) + _letter(i % 26)


def _table(table: results.Table) -> RankedTable:
    rows = [_row(table, cell) for cell in table.cells if cell.left_out is None]
    tests = {row.optimizer: _by_seed(row.cell) for row in rows}
    pairs = all_pairs(tests, table.metric)
    ordered = sorted(rows, key=lambda row: (*_score(row, table.metric), row.optimizer))
    return RankedTable(
        **{one.name: getattr(table, one.name) for one in fields(table)},
        rows=tuple(_standing(row, ordered[0], pairs) for row in ordered),
        left_out={cell.optimizer: cell.left_out for cell in table.cells if cell.left_out is not None},
        pairs=pairs,
    )


def _by_seed(cell: results.Cell) -> dict[int, float | None]:
    return {run.seed: run.test if run.finished else None for run in cell.seeds}


def _score(row: Row, metric: Metric) -> tuple[float, float]:
    """Less is better: first the share of seeds that failed, then the mean."""
    if row.test is None:
        return math.inf, 0.0
    return row.failed_seeds / row.seeds, -row.test.mean if metric.goal == "max" else row.test.mean


def _standing(row: Row, first: Row, pairs: dict[tuple[str, str], Paired]) -> Row:
    if row.test is None:
        return row
    versus = pairs.get((row.optimizer, first.optimizer))
    behind = versus is not None and versus.verdict is False
    return replace(row, standing="first" if row is first else "behind" if behind else "level")


def _row(table: results.Table, cell: results.Cell) -> Row:
    finished = [run for run in cell.seeds if run.finished]
    tests = [run.test for run in finished if run.test is not None]
    steps = [run.steps_to_target if run.finished else None for run in cell.seeds]
    second = median(cell.seconds_per_step) if cell.seconds_per_step else None
    to_target = restricted_mean(steps, table.steps) if steps and table.target is not None else None
    bests = [results.best(study, table.metric) for study in cell.studies]
    return Row(
        cell=cell,
        test=interval(tests, table.metric) if tests else None,
        steps_to_target=to_target,
        seconds_to_target=None if to_target is None or second is None else _times(to_target, second),
        step_seconds=second,
        reached=None if table.target is None else sum(one is not None for one in steps),
        failed_seeds=len(cell.seeds) - len(tests),
        failed_trials=sum(not run.finished for run in cell.trials),
        tuned=median_best([None if run is None else run.validation for run in bests], table.metric),
        best_of=best_of_n([run.validation for run in cell.trials if run.round == 0], table.metric),
        validation=_curve(finished, "validation", table.metric, second),
        train_loss=_curve(finished, "loss", LOSS, second),
    )


def _times(found: Interval, factor: float) -> Interval:
    low, high = (None if limit is None else limit * factor for limit in (found.low, found.high))
    return Interval(found.mean * factor, low, high, tuple(value * factor for value in found.values))


def _curve(runs: Sequence[results.Run], field: str, metric: Metric, second: float | None) -> Curve | None:
    """Over the steps that all seeds recorded with a finite number."""
    known = [{one.step: one for one in run.history if math.isfinite(getattr(one, field))} for run in runs]
    shared = sorted(set(known[0]).intersection(*known[1:])) if known else []
    if not shared:
        return None
    found = [interval([getattr(history[step], field) for history in known], metric) for step in shared]

    def took(step: int) -> float:
        seconds = [history[step].seconds for history in known]
        return step * second if second is not None else sum(seconds) / len(seconds)

    return Curve(
        steps=tuple(shared),
        examples=tuple(known[0][step].examples for step in shared),
        seconds=tuple(took(step) for step in shared),
        mean=tuple(one.mean for one in found),
        low=tuple(one.mean if one.low is None else one.low for one in found),
        high=tuple(one.mean if one.high is None else one.high for one in found),
    )


def _verdict(tables: Sequence[RankedTable]) -> Verdict:
    scores = [{row.optimizer: _score(row, table.metric) for row in table.rows} for table in tables]
    ranks = mean_ranks(scores)
    verdicts = [(a, pair.verdict) for table in tables for (a, _), pair in table.pairs.items()]
    reach = [
        {row.optimizer: median_time([run.steps_to_target if run.finished else None for run in row.cell.seeds])
         for row in table.rows}
        for table in tables
    ]  # fmt: skip
    return Verdict(
        ranks=ranks,
        tables={name: sum(name in score for score in scores) for name in ranks},
        firsts={name: sum(row.optimizer == name and row.standing == "first" for table in tables for row in table.rows)
                for name in ranks},
        wins={name: verdicts.count((name, True)) for name in ranks},
        losses={name: verdicts.count((name, False)) for name in ranks},
        steps=profile(reach),
        seconds=profile([_in_seconds(table, times) for table, times in zip(tables, reach, strict=True)]),
        inclusions=_inclusions(tables),
    )  # fmt: skip


def _in_seconds(table: RankedTable, times: dict[str, float | None]) -> dict[str, float | None]:
    """Empty unless every optimizer that got there was timed."""
    seconds = {row.optimizer: row.step_seconds for row in table.rows}
    if any(steps is not None and seconds[name] is None for name, steps in times.items()):
        return {}
    return {name: None if steps is None else steps * (seconds[name] or 0.0) for name, steps in times.items()}


def _inclusions(tables: Sequence[RankedTable]) -> tuple[Inclusion, ...]:
    """Corrected over all of them: they are a question of their own, asked before anything was seen."""
    found = {}
    for i, table in enumerate(tables):
        for row in table.rows:
            special = special_case(row.optimizer)
            if special is not None and (pair := table.pairs.get((row.optimizer, special))) is not None:
                found[str(i), row.optimizer] = (table, special, pair, row.trials)
    corrected = correct({key: pair for key, (_, _, pair, _) in found.items()})
    return tuple(
        Inclusion(table, general, special, corrected[i, general], trials)
        for (i, general), (table, special, _, trials) in found.items()
    )
