"""What is to be run of one optimizer in one table, and in what order: studies, their rounds, fresh seeds."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.lab import tasks
from thalweg.lab.contenders import Point, Settings, Space, contender
from thalweg.lab.engine import Place, RunSpec, stored
from thalweg.lab.search.points import ROUNDS, has_rounds, of_round, per_study, point
from thalweg.records import files as records
from thalweg.records import results
from thalweg.records.reading import read_run
from thalweg.records.results import Run, Trial, search_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SEARCH_SEED = 0  # and those after it, that trials are trained from
JUDGED = "last fifth"
AMOUNTS = ("trials", "studies", "seeds", "tuning_seeds")
"""What is asked for of a cell, which never shrinks."""
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
        more = f" of round {place.round}" if place.round else ""
        from_seed = f" seed {spec.seed}" if place.kind == "trial" and spec.seed != SEARCH_SEED else ""
        return f"{spec.task} {spec.batch_size} {spec.optimizer}: {what}{more}{from_seed}"


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
    tuning_seeds: int = 1

    @property
    def points(self) -> int:
        """How many points a study has, with those of its rounds."""
        return per_study(self.space, self.trials)

    @property
    def runs(self) -> int:
        """How many runs are asked for."""
        return self.studies * self.points * self.tuning_seeds + self.seeds if self.left_out is None else 0

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

    def trial(self, root: Path, at: Point, study: int, turn: int, number: int) -> list[Job]:
        """The tuning runs of a point, one for each tuning seed, which are the same for all points."""
        name = f"round-{turn}-trial-{number}" if turn else f"trial-{number}"
        search = search_name(self.trials, self.tuning_seeds) if turn else ""
        place = Place("trial", study, turn, number, dict(at), search)
        settings = contender(self.optimizer).settings(at)
        specs = [self.spec(settings, SEARCH_SEED + seed, test=False) for seed in range(self.tuning_seeds)]
        return [Job(spec, place, self.folder(root) / f"study-{study}" / f"{name}-{spec.hash}") for spec in specs]

    def fresh(self, root: Path, chosen: Trial, number: int) -> Job:
        """The chosen setting on a fresh seed."""
        spec = self.spec(chosen.settings, FIRST_FRESH_SEED + number, test=True)
        place = Place("seed", chosen.study, chosen.round, number, chosen.point)
        return Job(spec, place, self.folder(root) / f"seed-{number}-{spec.hash}")

    def open_jobs(self, root: Path, done: Callable[[Job], Run | None]) -> Iterator[Job]:
        """What can be run now; when nothing is left, what is complete has been seen to be so."""
        if self.left_out is not None:
            return
        waiting, studies = False, []
        for study in range(self.studies):
            found, jobs = self._study(root, study, done)
            yield from jobs
            waiting |= bool(jobs)
            studies.append(found)
        if waiting or (chosen := results.choose(studies, tasks.find(self.task).metric)) is None:
            return
        fresh = [self.fresh(root, chosen, number) for number in range(self.seeds)]
        yield from (job for job in fresh if done(job) is None)

    def chosen(self, root: Path, done: Callable[[Job], Run | None]) -> Trial | None:
        """The trial whose setting trains on fresh seeds; None while the search goes on, or where none finished."""
        studies = [self._study(root, study, done) for study in range(self.studies)]
        if self.left_out is not None or any(jobs for _, jobs in studies):
            return None
        return results.choose([found for found, _ in studies], tasks.find(self.task).metric)

    def tuned(self, root: Path, done: Callable[[Job], Run | None]) -> bool:
        """Whether its search is over."""
        return self.left_out is not None or not any(self._study(root, k, done)[1] for k in range(self.studies))

    def _study(self, root: Path, study: int, done: Callable[[Job], Run | None]) -> tuple[list[Trial], list[Job]]:
        """The trials of the rounds of a study that are complete, and what can be run now of the one that follows."""
        found: list[Trial] = []
        for trials in self._rounds(root, study, found):
            runs = [[(job, done(job)) for job in jobs] for jobs in trials]
            if left := [job for pairs in runs for job, run in pairs if run is None]:
                return found, left
            metric = tasks.find(self.task).metric
            found.extend(Trial.of([run for _, run in pairs if run is not None], metric, JUDGED) for pairs in runs)
        return found, []

    def _rounds(self, root: Path, study: int, found: list[Trial]) -> Iterator[list[list[Job]]]:
        """The rounds of a study, the jobs of each point; ``found`` holds the trials of those before."""
        where = f"{self.task}/{self.batch_size}/{self.steps}/{study}"
        first = [point(self.space, f"{where}/0", number) for number in range(self.trials)]
        yield [self.trial(root, at, study, 0, number) for number, at in enumerate(first)]
        for turn in range(1, 1 + ROUNDS * has_rounds(self.space)):
            metric, count = tasks.find(self.task).metric, math.ceil(self.trials / 2)
            points = of_round(self.space, found, metric, f"{where}/{turn}", count)
            yield [self.trial(root, at, study, turn, number) for number, at in enumerate(points)]

    def cost(self) -> float:
        """The cost of all runs, roughly in microseconds on one core."""
        return tasks.cost(tasks.find(self.task), self.batch_size, self.steps) * self.runs

    def looks(self, root: Path) -> int:
        """How often the fresh seeds were looked at: once more where all of them are there, and now more are wanted."""
        stored = stored_cell(self.folder(root))
        before = self._before(stored)
        looks = count_in(stored, "looks") or 1
        if before is None or before.seeds >= self.seeds or self.left_out is not None:
            return looks
        return looks + (not any(True for _ in before.open_jobs(root, Reader())))

    def _before(self, stored: dict[str, Any]) -> PlannedCell | None:
        """The cell as it was asked for before, as ``cell.json`` says it; None where it does not."""
        amounts = {name: count_in(stored, name) for name in AMOUNTS}
        code, data = stored.get("code"), stored.get("data")
        if None in amounts.values() or not isinstance(code, str) or not isinstance(data, str):
            return None
        return replace(self, **amounts, code=code, data=data)  # type: ignore[arg-type]

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
                "left_out": self.left_out, "command": command, "tuning_seeds": self.tuning_seeds, "judged": JUDGED,
                "rounds": ROUNDS * has_rounds(self.space),
                "chance": tasks.chance(self.task), "looks": self.looks(root),
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


def count_in(stored: dict[str, Any], name: str) -> int | None:
    """A count that ``cell.json`` holds; None where it holds none, or what none can be."""
    value = stored.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 10_000 else None


def same_regimen(regimen: dict[str, Any], other: object) -> bool:
    """Whether two regimens are one, as JSON writes them."""
    return bool(json.loads(json.dumps(regimen)) == other)
