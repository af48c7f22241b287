"""What is to be run of one optimizer in one table, and in what order: studies, rounds beyond an edge, fresh seeds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.lab import tasks
from thalweg.lab.contenders import Settings, Space, contender
from thalweg.lab.engine import Place, RunSpec, stored
from thalweg.lab.search.points import MOST_ROUNDS, beyond, point
from thalweg.records import files as records
from thalweg.records import results
from thalweg.records.reading import read_run
from thalweg.records.results import Axis, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEARCH_SEED = 0
FIRST_FRESH_SEED = 1000


def slug(name: str) -> str:
    """A name as that of a folder."""
    return "".join(c if c.isalnum() or c in "-._" else "." for c in name)


class Job(NamedTuple):
    """A run of a comparison and its folder."""

    spec: RunSpec
    place: Place
    folder: Path

    @property
    def cost(self) -> float:
        """Roughly, microseconds on one core."""
        return tasks.cost(tasks.find(self.spec.task), self.spec.batch_size, self.spec.steps)

    @property
    def label(self) -> str:
        """What it is, in few words."""
        spec, place = self.spec, self.place
        what = f"seed {place.number}" if place.kind == "seed" else f"study {place.study} trial {place.number}"
        more = f" beyond the edge ({place.round})" if place.round else ""
        return f"{spec.task} {spec.batch_size} {spec.optimizer}: {what}{more}"


@dataclass(frozen=True)
class PlannedCell:
    """One optimizer on one task at one batch size and training length, and how much is asked for."""

    task: str
    batch_size: int
    steps: int
    budget: str
    target: float | None
    optimizer: str
    space: Space
    regimen: dict[str, Any]
    trials: int
    studies: int
    seeds: int
    code: str
    data: str
    left_out: str | None = None

    def folder(self, root: Path) -> Path:
        """The folder of this cell's runs."""
        name = f"{self.steps}-steps"
        return root / "runs" / slug(self.task) / str(self.batch_size) / slug(self.optimizer) / name

    def spec(self, found: Settings, seed: int, *, test: bool) -> RunSpec:
        """A run of this cell."""
        return RunSpec(
            task=self.task, batch_size=self.batch_size, steps=self.steps, optimizer=self.optimizer, settings=found,
            seed=seed, test=test, code=self.code, data=self.data, **self.regimen,
        )  # fmt: skip

    def trial(self, root: Path, space: Space, study: int, turn: int, number: int) -> Job:
        """A tuning run; all of them start from the same seed."""
        at = point(space, f"{self.task}/{self.batch_size}/{self.steps}/{study}/{turn}", number)
        spec = self.spec(contender(self.optimizer).settings(at), SEARCH_SEED, test=False)
        name = f"round-{turn}-trial-{number}" if turn else f"trial-{number}"
        folder = self.folder(root) / f"study-{study}" / f"{name}-{spec.hash}"
        return Job(spec, Place("trial", study, turn, number, at), folder)

    def fresh(self, root: Path, chosen: Run, number: int) -> Job:
        """The chosen setting on a fresh seed."""
        spec = self.spec(chosen.settings, FIRST_FRESH_SEED + number, test=True)
        place = Place("seed", chosen.study, chosen.round, number, chosen.point)
        return Job(spec, place, self.folder(root) / f"seed-{number}-{spec.hash}")

    def open_jobs(self, root: Path, done: Callable[[Job], Run | None]) -> Iterator[Job]:
        """What can be run now; when nothing is left, what is complete has been seen to be so."""
        if self.left_out is not None:
            return
        metric, waiting, studies = tasks.find(self.task).metric, False, []
        for study in range(self.studies):
            found: list[Run] = []
            for jobs in self._rounds(root, study, found):
                runs = [done(job) for job in jobs]
                yield from (job for job, run in zip(jobs, runs, strict=True) if run is None)
                if None in runs:
                    waiting = True
                    break
                found.extend(run for run in runs if run is not None)
            studies.append(found)
        if waiting or (chosen := results.choose(studies, metric)) is None:
            return
        fresh = [self.fresh(root, chosen, number) for number in range(self.seeds)]
        yield from (job for job in fresh if done(job) is None)

    def _rounds(self, root: Path, study: int, found: list[Run]) -> Iterator[list[Job]]:
        """The rounds of a study; ``found`` holds the runs of those before."""
        yield [self.trial(root, self.space, study, 0, number) for number in range(self.trials)]
        whole = next((axis for axis in self.space if axis.name == "lr"), None)
        if whole is None or whole.values:
            return
        for turn in range(1, MOST_ROUNDS + 1):
            best = results.best(found, tasks.find(self.task).metric)
            side = results.edge(whole.share(best.settings["lr"])) if best else None
            if side is None:
                return
            space = beyond(tuple(whole if axis.name == "lr" else axis for axis in self.space), side)
            new = next(axis for axis in space if axis.name == "lr")
            whole = Axis("lr", min(whole.low, new.low), max(whole.high, new.high), log=True)
            yield [self.trial(root, space, study, turn, n) for n in range(math.ceil(self.trials / 2))]

    def cost(self) -> float:
        """The cost of all but the rounds beyond an edge, roughly in microseconds on one core."""
        if self.left_out is not None:
            return 0.0
        each = tasks.cost(tasks.find(self.task), self.batch_size, self.steps)
        return each * (self.studies * self.trials + self.seeds)

    def record(self, root: Path, command: str) -> None:
        """Write ``cell.json``: as much as was ever asked for."""
        path = self.folder(root) / "cell.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        task, splits = tasks.load(self.task)
        own = asdict(task.metric.over(len(splits.test)))
        metric = {key: value for key, value in own.items() if records.finite(value) is not None}
        records.write_json(
            path,
            {
                "format": records.FORMAT, "task": self.task, "title": task.title or self.task, "metric": metric,
                "batch_size": self.batch_size, "steps": self.steps, "budget": self.budget, "target": self.target,
                "train_examples": len(splits.train), "optimizer": self.optimizer,
                "space": [asdict(axis) for axis in self.space], "recipe": self.regimen, "trials": self.trials,
                "studies": self.studies, "seeds": self.seeds, "code": self.code, "data": self.data,
                "left_out": self.left_out, "command": command,
            },
        )  # fmt: skip


class Reader:
    """Which runs are complete: asked again and again, each read once."""

    def __init__(self) -> None:
        self.found: dict[Path, Run] = {}

    def __call__(self, job: Job) -> Run | None:
        """The complete run of this job, or None."""
        if job.folder not in self.found:
            if stored(job.folder, job.spec, job.place) is None:
                return None
            self.found[job.folder] = read_run(job.folder)
        return self.found[job.folder]


def stored_cell(folder: Path) -> dict[str, Any]:
    """What ``cell.json`` says, empty if it cannot be read."""
    try:
        return records.read_json(folder / "cell.json")
    except records.Damaged:
        return {}


def same_regimen(regimen: dict[str, Any], other: object) -> bool:
    """Whether two regimens are one, as JSON writes them."""
    return bool(json.loads(json.dumps(regimen)) == other)
