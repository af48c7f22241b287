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
class Cell:
    """One optimizer in one table: all its complete runs, tuning in the order of study, round and number.

    ``planned_*`` is how much was asked for; ``left_out`` says why the optimizer does not apply to the task.
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
    trials: tuple[Run, ...]
    seeds: tuple[Run, ...]
    left_out: str | None = None
    seconds_per_step: tuple[float, ...] = ()
    older: int = 0
    code: str = ""
    regimen: dict[str, Any] = field(default_factory=dict)
    metric: Metric = NONE

    @property
    def studies(self) -> tuple[tuple[Run, ...], ...]:
        """The trials of each study."""
        numbers = sorted({run.study for run in self.trials})
        return tuple(tuple(run for run in self.trials if run.study == number) for number in numbers)

    @property
    def chosen(self) -> Run | None:
        """The trial whose setting trained on fresh seeds: see :func:`choose`."""
        return choose(self.studies, self.metric)

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
    cells: tuple[Cell, ...]


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
                yield from (*cell.trials, *cell.seeds)


def edge(share: float) -> str | None:
    """Which edge of a range a share of it is at, if any.

    >>> edge(0.95), edge(0.5), edge(0.0)
    ('high', None, 'low')
    """
    return "low" if share < EDGE else "high" if share > 1.0 - EDGE else None


def best(trials: Sequence[Run], metric: Metric) -> Run | None:
    """The finished trial with the best validation metric at the end of its schedule, the first of equals."""
    found: Run | None = None
    for run in trials:
        if run.validation is None or not run.finished:
            continue
        if found is None or found.validation is None or metric.better(run.validation, found.validation):
            found = run
    return found


def choose(studies: Sequence[Sequence[Run]], metric: Metric) -> Run | None:
    """The best trial of the study whose best is the median of the studies' bests (of two middle ones the worse).

    A study in which nothing finished counts as the worst; where the median is such a study, no setting was found.
    """
    bests = [best(study, metric) for study in studies]
    found = [run for run in bests if run is not None and run.validation is not None]
    sign = -1.0 if metric.goal == "max" else 1.0
    ordered: list[Run | None] = [*sorted(found, key=lambda run: sign * (run.validation or 0.0))]
    ordered += [None] * (len(bests) - len(found))
    return ordered[len(ordered) // 2] if ordered else None
