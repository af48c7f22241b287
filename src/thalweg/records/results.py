"""What is stored in the folder of a comparison, as plain data: the only thing that statistics and report look at.

:func:`thalweg.records.reading.read` makes it from the files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from thalweg.records.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

FAILURES = ("diverged", "non-finite metric", "refused", "out of memory", "crashed")
"""How a run can fail. Of the second the training loss was finite, and what is measured at the end is not."""
JUDGED = ("last", "last fifth")
"""What of a run a trial is judged by: its last evaluation, or the mean of the last fifth of them, at least the last."""
NEIGHBOUR = 1.8  # learning rates within this factor of one another are neighbours
EDGE = 0.1  # the share of a searched range, at either end, in which a winner counts as being at the edge
NONE = Metric("", "min")


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched coordinate and its range; ``log``: equal steps are equal factors.

    ``values``: only these are tried, equal shares of the range each.
    """

    name: str
    low: float
    high: float
    log: bool = False
    values: tuple[float, ...] = ()

    def at(self, unit: float) -> float:
        """The value a share ``unit`` of the way from ``low`` to ``high``.

        >>> Axis("lr", 0.01, 1.0, log=True).at(0.5)
        0.1
        """
        if self.values:
            return self.values[min(int(unit * len(self.values)), len(self.values) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
            return min(max(float(f"{value:.12g}"), self.low), self.high)
        return self.low + unit * (self.high - self.low)

    def share(self, value: float) -> float:
        """The inverse of :meth:`at`: 0 at ``low``, 1 at ``high``, beyond them outside the range."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -math.inf
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of a run's history; ``seconds`` are of training alone; numbers that were not finite are NaN."""

    step: int
    examples: int
    seconds: float
    loss: float
    validation: float
    lr: float


@dataclass(frozen=True, slots=True)
class Run:
    """One complete run.

    ``kind`` is ``"trial"`` (tuning) or ``"seed"`` (the chosen setting on a fresh seed). ``point`` is where in the
    search space a trial is, ``settings`` what the optimizer got. ``failure`` is None or one of :data:`FAILURES`.
    ``test_metrics`` are further numbers of the test set, where the task has some.
    """

    folder: Path
    kind: str
    study: int
    round: int
    number: int
    seed: int
    point: dict[str, float]
    settings: dict[str, float]
    failure: str | None
    reason: str | None
    validation: float | None
    test: float | None
    seconds: float
    steps_to_target: int | None
    seconds_to_target: float | None
    spec: dict[str, Any] = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    history: tuple[Evaluation, ...] = field(repr=False)
    test_metrics: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it came to the end of its schedule."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of a study, trained from one or more seeds.

    ``validation`` is what it is judged by: see :func:`judged`; None where it failed on a seed. ``failure`` and
    ``reason`` are those of the first seed that failed.
    """

    runs: tuple[Run, ...]
    validation: float | None

    @classmethod
    def of(cls, runs: Sequence[Run], metric: Metric, how: str) -> Trial:
        """The trial of these complete runs, in the order of their seeds, judged as ``how``, one of :data:`JUDGED`."""
        finished = all(run.finished for run in runs)
        values = [judged(run, metric, how) for run in runs if finished]
        return cls(tuple(runs), mean(values, metric) if values else None)

    @property
    def finished(self) -> bool:
        """Whether all its runs came to the end of their schedules."""
        return self.validation is not None

    @property
    def _failed(self) -> Run:
        return next((run for run in self.runs if not run.finished), self.runs[0])

    @property
    def failure(self) -> str | None:
        """How it failed, if it did."""
        return self._failed.failure

    @property
    def reason(self) -> str | None:
        """Why it failed, if it did."""
        return self._failed.reason

    @property
    def study(self) -> int:
        """Which study it is of."""
        return self.runs[0].study

    @property
    def round(self) -> int:
        """Which round of the study, 0 for the first points."""
        return self.runs[0].round

    @property
    def number(self) -> int:
        """Which point of the round."""
        return self.runs[0].number

    @property
    def point(self) -> dict[str, float]:
        """Where in the search space it is."""
        return self.runs[0].point

    @property
    def settings(self) -> dict[str, float]:
        """What the optimizer got."""
        return self.runs[0].settings


@dataclass(frozen=True, slots=True)
class Cell:
    """One optimizer in one table: all its complete runs, tuning in the order of study, round and number.

    ``planned_*`` is how much was asked for, ``tuning_seeds`` from how many seeds a trial is trained, ``judged`` by what
    of its runs (one of :data:`JUDGED`), and ``rounds`` how many follow the first points of a study whatever these
    were; ``left_out`` says why the optimizer does not apply to the task. ``looks`` is how often the fresh seeds were
    looked at: 1, and 1 more for each time that all were trained and then more were asked for.
    ``seconds_per_step`` comes from the interleaved timing pass: the seconds of single steps, or empty if it was not
    made. ``older`` counts complete runs of other code or data, which are not used. ``regimen`` is what all runs of the
    cell share: schedule, warm-up, clipping and so on.
    """

    folder: Path
    optimizer: str
    space: tuple[Axis, ...]
    planned_trials: int
    planned_studies: int
    planned_seeds: int
    trials: tuple[Trial, ...]
    seeds: tuple[Run, ...]
    left_out: str | None = None
    seconds_per_step: tuple[float, ...] = ()
    older: int = 0
    code: str = ""
    regimen: dict[str, Any] = field(default_factory=dict)
    metric: Metric = NONE
    tuning_seeds: int = 1
    judged: str = "last"
    rounds: int = 0
    looks: int = 1

    @property
    def studies(self) -> tuple[tuple[Trial, ...], ...]:
        """The trials of each study."""
        numbers = sorted({trial.study for trial in self.trials})
        return tuple(tuple(trial for trial in self.trials if trial.study == number) for number in numbers)

    @property
    def chosen(self) -> Trial | None:
        """The trial whose setting trained on fresh seeds: see :func:`choose`."""
        return choose(self.studies, self.metric)

    @property
    def unrefined(self) -> bool:
        """Whether the chosen learning rate has no neighbour tried on one side; not where it is at an edge."""
        chosen = self.chosen
        if chosen is None or not self.rounds or "lr" not in chosen.point or "lr" in self.edges:
            return False
        return None in neighbours(chosen, self.trials)

    @property
    def wanted(self) -> int:
        """How many trials were asked for, with those of the rounds."""
        return self.planned_studies * (self.planned_trials + self.rounds * math.ceil(self.planned_trials / 2))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, those of trials first."""
        return (*(run for trial in self.trials for run in trial.runs), *self.seeds)

    @property
    def edges(self) -> dict[str, str]:
        """The coordinates of the chosen setting that are at an edge of all that was searched: "low" or "high"."""
        chosen = self.chosen
        if chosen is None:
            return {}
        found = {}
        for axis in self.space:
            tried = [run.point[axis.name] for run in self.trials if axis.name in run.point]
            if axis.name in chosen.point and tried:
                whole = Axis(axis.name, min(axis.low, *tried), max(axis.high, *tried), axis.log)
                share = whole.share(chosen.point[axis.name])
                if side := edge(share):
                    found[axis.name] = side
        return found


@dataclass(frozen=True, slots=True)
class Table:
    """All optimizers on one task at one batch size and training length."""

    task: str
    title: str
    metric: Metric
    batch_size: int
    steps: int
    budget: str
    target: float | None
    train_examples: int
    chance: float | None
    cells: tuple[Cell, ...]

    @property
    def usable(self) -> dict[str, int]:
        """How many trials of each optimizer closed at least half of the gap between chance and the table's best.

        Chance is the metric of the best constant prediction; where that is not known, the worst finished trial's. On
        the scale of the metric, logarithmic or not. A trial that failed on a tuning seed is not usable.
        """
        values = [one.validation for cell in self.cells for one in cell.trials if one.validation is not None]
        if not values:
            return {cell.optimizer: 0 for cell in self.cells if cell.left_out is None}
        worst, best = sorted((min(values), max(values)), reverse=self.metric.goal == "min")
        start = worst if self.chance is None else self.chance
        log = self.metric.log and min(start, *values) > 0.0

        def gained(value: float) -> float:
            gain = math.log(value / start) if log else value - start
            return gain if self.metric.goal == "max" else -gain

        half = gained(best) / 2.0
        return {
            cell.optimizer: sum(
                one.validation is not None and gained(one.validation) >= half >= 0.0 for one in cell.trials
            )
            for cell in self.cells
            if cell.left_out is None
        }

    @property
    def unequal(self) -> tuple[str, ...]:
        """The optimizers that had less than half as many usable trials as another.

        None where a cell does not say how it was searched, as those of before.
        """
        usable = self.usable
        if not usable or any(cell.judged == "last" for cell in self.cells):
            return ()
        return tuple(name for name, count in usable.items() if 2 * count < max(usable.values()))


@dataclass(frozen=True, slots=True)
class Results:
    """A folder of a comparison."""

    root: Path
    tables: tuple[Table, ...]
    problems: tuple[str, ...]
    commands: tuple[str, ...]

    @property
    def runs(self) -> Iterator[Run]:
        """Every complete run."""
        for table in self.tables:
            for cell in table.cells:
                yield from cell.runs


def search_name(trials: int, tuning_seeds: int) -> str:
    """What a search of so many first points a study, from so many seeds each, is called in the places of its rounds.

    >>> search_name(8, 2)
    '8x2'
    """
    return f"{trials}x{tuning_seeds}"


def edge(share: float) -> str | None:
    """Which edge of a range a share of it is at, if any.

    >>> edge(0.95), edge(0.5), edge(0.0)
    ('high', None, 'low')
    """
    return "low" if share < EDGE else "high" if share > 1.0 - EDGE else None


def neighbours(chosen: Trial, trials: Sequence[Trial]) -> tuple[Trial | None, Trial | None]:
    """The trials with the next lower and the next higher learning rate, at most a factor of :data:`NEIGHBOUR` away.

    All their other coordinates are those of ``chosen``; None where there is none.
    """

    def away(trial: Trial) -> float:
        return math.log(trial.point["lr"] / chosen.point["lr"])

    if chosen.point["lr"] <= 0.0:
        return None, None
    known = [trial for trial in trials if trial.point.get("lr", 0.0) > 0.0]
    same = [trial for trial in known if {**trial.point, "lr": 0.0} == {**chosen.point, "lr": 0.0}]
    near = [trial for trial in same if 0.0 < abs(away(trial)) <= math.log(NEIGHBOUR) + 1e-9]
    below = max((trial for trial in near if away(trial) < 0.0), key=away, default=None)
    return below, min((trial for trial in near if away(trial) > 0.0), key=away, default=None)


def mean(values: Sequence[float], metric: Metric) -> float:
    """The mean of at least one value, geometric where the metric is logarithmic and all are above 0.

    >>> mean([1.0, 4.0], Metric("loss", "min", log=True)), mean([1.0, 4.0], Metric("accuracy", "max"))
    (2.0, 2.5)
    """
    if len(set(values)) == 1:
        return values[0]
    if metric.log and min(values) > 0.0:
        return math.exp(math.fsum(map(math.log, values)) / len(values))
    return math.fsum(values) / len(values)


def judged(run: Run, metric: Metric, how: str) -> float:
    """What a finished run of a trial counts for: its last evaluation, or the mean of the last fifth of them.

    Args:
        run: one that finished.
        metric: what it is measured by; see :func:`mean`.
        how: one of :data:`JUDGED`.
    """
    assert run.validation is not None
    if how == "last":
        return run.validation
    values = [one.validation for one in run.history[-max(1, len(run.history) // 5) :]]
    return mean([value for value in values if math.isfinite(value)] or [run.validation], metric)


def best(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """The finished trial that is judged best, the first of equals."""
    found: Trial | None = None
    for trial in trials:
        if trial.validation is None:
            continue
        if found is None or found.validation is None or metric.better(trial.validation, found.validation):
            found = trial
    return found


def choose(studies: Sequence[Sequence[Trial]], metric: Metric) -> Trial | None:
    """The best trial of the study whose best is the median of the studies' bests (of two middle ones the worse).

    A study in which nothing finished counts as the worst; where the median is such a study, no setting was found.
    """
    bests = [best(study, metric) for study in studies]
    found = [trial for trial in bests if trial is not None and trial.validation is not None]
    sign = -1.0 if metric.goal == "max" else 1.0
    ordered: list[Trial | None] = [*sorted(found, key=lambda trial: sign * (trial.validation or 0.0))]
    ordered += [None] * (len(bests) - len(found))
    return ordered[len(ordered) // 2] if ordered else None
