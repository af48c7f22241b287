"""How long a comparison takes before any of it has run: all that the command does, roughly.

From what a task says of itself (``example_cost``), so that nothing is trained for it: the training steps, the
evaluations, models and records of each run, the start of the processes, and the timing pass, which is no small part of
a comparison of few steps.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from thalweg.lab import tasks
from thalweg.lab.search.timing import FEWEST, SECONDS, WARM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from thalweg.lab.search.cells import PlannedCell
    from thalweg.lab.tasks import Splits, Task

START = 5.0  # seconds until worker processes have imported torch
RUN = 50_000.0  # microseconds that a run takes beside its steps and evaluations: model, optimizer, records
INITIAL = 0.01  # microseconds to initialise a parameter
EVALUATION = 1_000.0  # microseconds of an evaluation beside its examples
FORWARD = 1.0 / 3.0  # of a training step's cost is that of an evaluation, which has no backward


@dataclass(frozen=True, slots=True)
class Expected:
    """Seconds on as many processes as were asked for.

    ``training``: all steps. ``beside``: evaluations, and what a run takes to begin and to end. ``timing``: the pass in
    which all optimizers take turns. Apart from these, ``starting``: until workers work.
    """

    training: float
    beside: float
    starting: float
    timing: float

    @property
    def total(self) -> float:
        """All but ``starting``."""
        return self.training + self.beside + self.timing


def expected(cells: Sequence[PlannedCell], jobs: int, *, timing: bool) -> Expected:
    """How long the runs of these cells take, ``jobs`` at a time, from nothing to the end."""
    open_cells = [cell for cell in cells if cell.left_out is None]
    at_a_time = min(jobs, os.cpu_count() or 1)
    training = beside = passes = 0.0
    for cell in open_cells:
        task, splits = tasks.load(cell.task)
        trial, seed = (
            run_overhead(task, splits, min(cell.regimen["evaluations"], cell.steps), test=test)
            for test in (False, True)
        )
        training += cell.cost()
        beside += (cell.runs - cell.seeds) * trial + cell.seeds * seed
    if timing:
        for (name, batch_size, _), table in groupby(open_cells, key=lambda c: (c.task, c.batch_size, c.steps)):
            task = tasks.find(name)
            passes += timing_pass(tasks.cost(task, batch_size, 1) / 1e6, len(list(table)), tasks.parameters(task))
    started = START * (bool(open_cells) + bool(open_cells and timing))
    second = 1e6 * at_a_time
    return Expected(training / second, beside / second, started, passes)


def run_overhead(task: Task, splits: Splits, evaluations: int, *, test: bool) -> float:
    """Microseconds on one core that a run takes beside its steps, so many evaluations and perhaps the test set."""
    parts = [len(splits.validation)] * evaluations + [len(splits.test)] * test
    examples = sum(EVALUATION + FORWARD * task.example_cost * part for part in parts)
    return RUN + INITIAL * tasks.parameters(task) + examples


def timing_pass(step: float, optimizers: int, parameters: int) -> float:
    """Seconds of the timing pass over one table, whose steps take so many seconds, on a machine with nothing else."""
    turn = step * optimizers
    turns = min(WARM + FEWEST + 2, max(WARM + 2, math.ceil(SECONDS / turn)))
    return optimizers * (RUN + INITIAL * parameters) / 1e6 + turns * turn
