"""Seconds a step of each optimizer, apart from quality: warm, interleaved, alone on the machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from thalweg.lab.engine import Execution, Failed, RunSpec, Stopped, Training
from thalweg.lab.search.cells import PlannedCell, Reader, slug
from thalweg.records import files as records
from thalweg.records.errors import UserError
from thalweg.records.reading import read_timing

if TYPE_CHECKING:
    from pathlib import Path

WARM, FEWEST, ROUNDS = 3, 5, 20  # rounds before, and rounds that count
SECONDS = 10.0  # at most, of a table with its fewest rounds done
ERROR = 0.05  # with which each optimizer's share of a round is known where fewer rounds than all suffice
T_OF_FEWEST = 2.78  # Student's t at 95 % for FEWEST rounds; a little too wide for more


def time_tables(
    root: Path,
    cells: Sequence[PlannedCell],
    stop: Callable[[], bool] = lambda: False,
    execution: Execution | None = None,
) -> None:
    """Time every table whose optimizers have settings, and write ``timing/STEPS-steps.json`` beside its runs.

    A table is timed again when a setting has changed or an optimizer has come, and then all of it, also what earlier
    commands compared there: only what took turns can be compared. In each round every optimizer takes one step, in an
    order of the round's own, so that whatever slows the machine slows all of them. The rounds end when each optimizer's
    time relative to the others' is known within 5 %, and after 20 in any case.
    """
    reader = Reader()
    for (task, batch_size, steps), group in groupby(cells, key=lambda cell: (cell.task, cell.batch_size, cell.steps)):
        path = root / "runs" / slug(task) / str(batch_size) / "timing" / f"{steps}-steps.json"
        before = stored_specs(path)
        chosen = dict(before)
        for cell in group:
            if not list(cell.open_jobs(root, reader)) and (trial := cell.chosen(root, reader)) is not None:
                chosen[cell.optimizer] = cell.spec(trial.settings, 0, test=False)
        if chosen == before:
            continue
        trainings = {}
        for name, spec in chosen.items():
            try:
                trainings[name] = Training(replace(spec, steps=WARM + ROUNDS), root, execution or Execution())
            except Failed:
                continue
        seconds = _interleaved(trainings, stop)
        path.parent.mkdir(parents=True, exist_ok=True)
        specs = {name: spec.as_dict() for name, spec in chosen.items()}
        records.write_json(path, {"specs": specs, "environment": records.environment(), "seconds": seconds})


def stored_specs(path: Path) -> dict[str, RunSpec]:
    """What a table was timed with, as far as the code and the data of it are still those that are here."""
    found = {}
    try:
        for name, values in records.Fields(path, records.read_json(path)).object("specs").values.items():
            read_timing(path, name)
            with suppress(AttributeError, TypeError, ValueError, UserError):  # of another time, or damaged
                if (spec := RunSpec.of(values)) == spec.stamped():
                    found[name] = spec
    except records.Damaged:
        return {}
    return found


def _interleaved(trainings: dict[str, Training], stop: Callable[[], bool]) -> dict[str, list[float]]:
    batches = {name: training.batches() for name, training in trainings.items()}
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    order, began = random.Random(0), time.perf_counter()
    for turn in range(WARM + ROUNDS):
        names = list(trainings)
        order.shuffle(names)
        for name in names:
            if stop():
                raise Stopped
            started = trainings[name]._clock()
            try:
                trainings[name].take_step(batches[name])
            except Failed:
                del trainings[name], seconds[name]
                continue
            if turn >= WARM:
                seconds[name].append(trainings[name]._clock() - started)
        counted = turn + 1 - WARM
        if (counted >= 2 and time.perf_counter() - began > SECONDS) or (counted >= FEWEST and _known(seconds)):
            break
    return seconds


def _known(seconds: dict[str, list[float]]) -> bool:
    """Whether the mean over rounds of each one's logarithm, less the round's own, has a 95 % interval below ERROR."""
    logs = np.log(np.array(list(seconds.values())))
    shares = logs - logs.mean(0)
    half = T_OF_FEWEST * shares.std(1, ddof=1) / np.sqrt(shares.shape[1])
    return bool((half < ERROR).all())
