"""What a comparison found, as plain data: the terminal table and the HTML report draw this and nothing else.

Built by :func:`summarise` from what :mod:`thalweg.records.reading` reads, with :mod:`thalweg.report.statistics`
and :mod:`thalweg.report.decisions`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from statistics import median

from thalweg.arguments import did_you_mean
from thalweg.records import results
from thalweg.records.errors import UserError
from thalweg.records.metric import Metric
from thalweg.report.decisions import Outcome, Paired, Pooled, correct, pool
from thalweg.report.rankings import BestOf, best_of_n, mean_ranks, median_best, median_time, profile
from thalweg.report.statistics import Interval, all_pairs, detectable, interval, restricted_mean, special_case

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
    ``left_out`` says why the row takes no part in verdicts, counts, ranks and pools: "diverged" where no seed finished,
    "at chance" where the mean is not better than the best constant prediction by more than its own interval.
    ``standing`` is "first", else what is decided against ``RankedTable.beside``, "" where nothing was compared.
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
    left_out: str = ""
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
    """A table of the results with its rows, best first.

    ``pairs`` are the tested ones, each in either order. ``beside`` is whom the rows stand beside: the reference, or the
    first. ``shows`` is the least difference that this many seeds show with a power of .8, at the median spread of the
    pairs and under the page's correction; of logarithms where ``pairs`` are; None where that is not known.
    """

    rows: tuple[Row, ...]
    left_out: dict[str, str]
    pairs: dict[tuple[str, str], Paired]
    beside: str = ""
    shows: float | None = None

    @property
    def tested(self) -> dict[tuple[str, str], Paired]:
        """Each pair once, the one with the better mean first."""
        return {(a, b): pair for (a, b), pair in self.pairs.items() if pair.better or (not pair.difference and a < b)}

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
    """An optimizer beside the one that it contains as a special case, in one table; one of the table's pairs."""

    table: RankedTable
    general: str
    special: str
    found: Paired
    trials: int


@dataclass(frozen=True, slots=True)
class PooledPair:
    """Two optimizers over the tables of one metric in which they meet, of which ``found`` could use some."""

    a: str
    b: str
    metric: Metric
    meet: int
    found: Pooled


@dataclass(frozen=True, slots=True)
class Across:
    """What holds across tables.

    ``ranks`` are mean ranks, best first; ``tables`` in how many tables each took part, ``left_out`` in how many it did
    not, as it diverged or is at chance; ``firsts`` how often it ranked first; ``wins`` and ``losses`` how many of its
    pairs are decided, ``equal`` how many equivalent, by :attr:`~thalweg.report.decisions.Paired.verdict`. ``steps``
    and ``seconds`` are the performance profiles of the median seed's way to the target. ``pools`` are the mean
    differences of two optimizers over all tables of one metric.
    """

    ranks: dict[str, float]
    tables: dict[str, int]
    left_out: dict[str, int]
    firsts: dict[str, int]
    wins: dict[str, int]
    losses: dict[str, int]
    equal: dict[str, int]
    steps: dict[str, tuple[float, ...]]
    seconds: dict[str, tuple[float, ...]]
    inclusions: tuple[Inclusion, ...]
    pools: tuple[PooledPair, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """An environment that runs recorded, and how many of them it was."""

    label: str
    environment: dict[str, str]
    runs: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything a report shows.

    ``trials``, ``studies`` and ``seeds`` are the most that a cell was to have, of all the same where ``alike``.
    ``comparisons`` is over how many all p-values and intervals of differences are corrected: pairs of all tables and
    pools, times ``looks``, how often the seeds were looked at.
    """

    tables: tuple[RankedTable, ...]
    verdict: Across
    comparisons: int
    looks: int
    reference: str | None
    trials: int
    rounds: int
    studies: int
    seeds: int
    alike: bool
    command: str
    created: str
    machines: tuple[Machine, ...]
    problems: tuple[str, ...]

    def machine_of(self, run: results.Run) -> str:
        """The label of where a run ran."""
        return next((one.label for one in self.machines if one.environment == run.environment), "")


def summarise(
    found: results.Results, command: str, *, margin: float | None = None, reference: str | None = None
) -> Summary:
    """Everything the report shows, from what is stored.

    Args:
        found: the records.
        command: what made them.
        margin: the least difference that matters, in the metric's unit; None for the metrics' own.
        reference: the optimizer that each other is compared with; None to compare all pairs, at the price that
            :func:`~thalweg.report.statistics.all_pairs` names.

    Raises:
        UserError: the margin has no unit here, or the reference took no part.
    """
    cells = [cell for table in found.tables for cell in table.cells]
    _check(found, margin, reference)
    rows = [_rows(table) for table in found.tables]
    families = [_pairs(table, own, reference, margin) for table, own in zip(found.tables, rows, strict=True)]
    metrics = [table.metric for table in found.tables]
    pools = _pools(metrics, families)
    looks = max((cell.looks for cell in cells), default=1)
    comparisons = max(1, sum(map(len, families)) + len(pools)) * looks
    tables = tuple(
        _table(table, own, correct(family, comparisons), reference, comparisons)
        for table, own, family in zip(found.tables, rows, families, strict=True)
    )
    return Summary(
        tables=tables,
        verdict=_across(tables, [replace(one, found=replace(one.found, comparisons=comparisons)) for one in pools]),
        comparisons=comparisons,
        looks=looks,
        reference=reference,
        trials=max((cell.planned_trials for cell in cells), default=0),
        rounds=max((cell.rounds for cell in cells), default=0),
        studies=max((cell.planned_studies for cell in cells), default=0),
        seeds=max((cell.planned_seeds for cell in cells), default=0),
        alike=len({(cell.planned_trials, cell.planned_studies, cell.planned_seeds) for cell in cells}) < 2,
        command=command,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machines=_machines(found.runs),
        problems=found.problems,
    )


def _check(found: results.Results, margin: float | None, reference: str | None) -> None:
    names = sorted({cell.optimizer for table in found.tables for cell in table.cells})
    if reference is not None and names and reference not in names:
        raise UserError(
            f"the reference must be one of {', '.join(names)}, got {reference!r}{did_you_mean(reference, names)}"
        )
    if margin is None or not found.tables:
        return
    units = sorted({table.metric.unit for table in found.tables if not table.metric.log})
    if not units:
        raise UserError("a margin is a difference in the metric's unit: here differences are factors")
    if len(units) > 1:
        raise UserError(f"a margin has one unit, and the tables have several: {', '.join(units)}")


def _machines(runs: Iterable[results.Run]) -> tuple[Machine, ...]:
    counts = Counter(tuple(run.environment.items()) for run in runs)
    return tuple(Machine(_letter(i), dict(key), count) for i, (key, count) in enumerate(counts.most_common()))


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else _letter(i // 26 - 1) + _letter(i % 26)


def _rows(table: results.Table) -> list[Row]:
    """The best first; those that take no part last."""
    rows = [_row(table, cell) for cell in table.cells if cell.left_out is None]
    return sorted(rows, key=lambda row: (row.left_out != "", *_score(row, table.metric), row.optimizer))


def _pairs(
    table: results.Table, rows: Sequence[Row], reference: str | None, margin: float | None
) -> dict[tuple[str, str], Paired]:
    tests = {row.optimizer: _by_seed(row.cell) for row in rows if not row.left_out}
    return all_pairs(tests, table.metric, reference=reference, margin=margin)


def _table(
    table: results.Table,
    rows: Sequence[Row],
    pairs: dict[tuple[str, str], Paired],
    reference: str | None,
    comparisons: int,
) -> RankedTable:
    both = pairs | {(b, a): one.reverse() for (a, b), one in pairs.items()}
    beside = reference or (rows[0].optimizer if rows else "")
    return RankedTable(
        **{one.name: getattr(table, one.name) for one in fields(table)},
        rows=tuple(_standing(row, rows[0], both.get((row.optimizer, beside))) for row in rows),
        left_out={cell.optimizer: cell.left_out for cell in table.cells if cell.left_out is not None},
        pairs=both,
        beside=beside,
        shows=_shows(list(pairs.values()), comparisons),
    )


def _shows(pairs: Sequence[Paired], comparisons: int) -> float | None:
    spreads = [pair.spread for pair in pairs if pair.spread > 0.0]
    if not spreads:
        return None
    return detectable(median(spreads), min(pair.seeds for pair in pairs), comparisons)


def _pools(metrics: Sequence[Metric], families: Sequence[dict[tuple[str, str], Paired]]) -> list[PooledPair]:
    """One for each two that meet in two or more tables of one metric."""
    met: dict[tuple[str, str, str, str], list[tuple[Metric, Paired]]] = {}
    for metric, family in zip(metrics, families, strict=True):
        for pair, one in family.items():
            a, b = sorted(pair)
            met.setdefault((a, b, metric.name, metric.unit), []).append(
                (metric, one if pair == (a, b) else one.reverse())
            )
    return [
        PooledPair(a, b, own[0][0], len(own), found)
        for (a, b, _, _), own in met.items()
        if (found := pool([one for _, one in own])) is not None
    ]


def _by_seed(cell: results.Cell) -> dict[int, float | None]:
    return {run.seed: run.test if run.finished else None for run in cell.seeds}


def _score(row: Row, metric: Metric) -> tuple[float, float]:
    """Less is better: first the share of seeds that failed, then the mean."""
    if row.test is None:
        return math.inf, 0.0
    return row.failed_seeds / row.seeds, -row.test.mean if metric.goal == "max" else row.test.mean


def _standing(row: Row, first: Row, versus: Paired | None) -> Row:
    if row is first and not row.left_out:
        return replace(row, standing="first")
    return row if versus is None else replace(row, standing=str(versus.verdict))


def _left_out(test: Interval | None, metric: Metric, chance: float | None) -> str:
    """Why an optimizer with these results is not compared.

    >>> accuracy = Metric("accuracy", "max")
    >>> [_left_out(Interval(52.0, low, 55.0, ()), accuracy, 50.0) for low in (49.0, 51.0)]
    ['at chance', '']
    """
    if test is None:
        return "diverged"
    worst = test.low if metric.goal == "max" else test.high
    if chance is not None and not metric.better(test.mean if worst is None else worst, chance):
        return "at chance"
    return ""


def _row(table: results.Table, cell: results.Cell) -> Row:
    finished = [run for run in cell.seeds if run.finished]
    tests = [run.test for run in finished if run.test is not None]
    steps = [run.steps_to_target if run.finished else None for run in cell.seeds]
    second = median(cell.seconds_per_step) if cell.seconds_per_step else None
    to_target = restricted_mean(steps, table.steps) if steps and table.target is not None else None
    bests = [results.best(study, table.metric) for study in cell.studies]
    test = interval(tests, table.metric) if tests else None
    return Row(
        cell=cell,
        test=test,
        left_out=_left_out(test, table.metric, table.chance),
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


def _across(tables: Sequence[RankedTable], pools: Sequence[PooledPair]) -> Across:
    scores = [{row.optimizer: _score(row, table.metric) for row in table.rows if not row.left_out} for table in tables]
    ranks = mean_ranks(scores)
    apart = Counter(row.optimizer for table in tables for row in table.rows if row.left_out)
    verdicts = Counter((a, pair.verdict) for table in tables for (a, _), pair in table.pairs.items())
    reach = [
        {row.optimizer: median_time([run.steps_to_target if run.finished else None for run in row.cell.seeds])
         for row in table.rows}
        for table in tables
    ]  # fmt: skip
    firsts = Counter(row.optimizer for table in tables for row in table.rows if row.standing == "first")
    return Across(
        ranks=ranks,
        tables={name: sum(name in score for score in scores) for name in ranks},
        left_out=dict(apart),
        firsts={name: firsts[name] for name in ranks},
        wins={name: verdicts[name, Outcome.BETTER] for name in ranks},
        losses={name: verdicts[name, Outcome.WORSE] for name in ranks},
        equal={name: verdicts[name, Outcome.EQUIVALENT] for name in ranks},
        steps=profile(reach),
        seconds=profile([_in_seconds(table, times) for table, times in zip(tables, reach, strict=True)]),
        inclusions=_inclusions(tables),
        pools=tuple(pools),
    )


def _in_seconds(table: RankedTable, times: dict[str, float | None]) -> dict[str, float | None]:
    """Empty unless every optimizer that got there was timed."""
    seconds = {row.optimizer: row.step_seconds for row in table.rows}
    if any(steps is not None and seconds[name] is None for name, steps in times.items()):
        return {}
    return {name: None if steps is None else steps * (seconds[name] or 0.0) for name, steps in times.items()}


def _inclusions(tables: Sequence[RankedTable]) -> tuple[Inclusion, ...]:
    return tuple(
        Inclusion(table, row.optimizer, special, pair, row.trials)
        for table in tables
        for row in table.rows
        if (special := special_case(row.optimizer)) is not None
        and (pair := table.pairs.get((row.optimizer, special))) is not None
    )
