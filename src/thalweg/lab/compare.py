"""A tuned comparison: the same search for every optimizer, then the best setting on fresh seeds.

The folder of a comparison holds ``plan.json``, ``trials.db`` (the Optuna studies, one a task, batch size and optimizer)
and ``runs/TASK/BATCH/OPTIMIZER/{trial,seed}-N``. Whatever is complete there is not run again.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import optuna

from thalweg.lab import records, tasks
from thalweg.lab.errors import UserError
from thalweg.lab.optimizers import Settings, contender, settings
from thalweg.lab.records import Run
from thalweg.lab.work import Job, run_all, step_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

SEARCH_SEED = 0
FIRST_FRESH_SEED = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compare. ``steps`` overrides every task's own training length; ``None`` keeps it."""

    tasks: tuple[str, ...]
    batch_sizes: tuple[int, ...] | None
    optimizers: tuple[str, ...]
    trials: int
    seeds: int
    steps: int | None = None

    def cells(self) -> Iterator[Cell]:
        """Every task, batch size and optimizer that goes together."""
        for name in self.tasks:
            budgets = tasks.TASKS[name].budgets
            for batch_size in self.batch_sizes or tuple(budgets):
                for optimizer in self.optimizers:
                    if left_out(name, optimizer) is None:
                        yield Cell(name, batch_size, self.steps or budgets[batch_size].steps, optimizer)

    @classmethod
    def read(cls, root: Path) -> Plan:
        """The plan carried out in this folder.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = root / "plan.json"
        if not path.exists():
            raise UserError(f"{root} holds no comparison: run `thalweg compare TASK --out {root}` first")
        stored = records.read_json(path)
        try:
            fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
            return cls(**fields)
        except (TypeError, AttributeError):
            raise UserError(f"corrupt record {path}: delete it and run `thalweg compare` again") from None

    def check(self) -> None:
        """Raise :class:`UserError` for what cannot be compared."""
        for name in self.tasks:
            if name not in tasks.TASKS:
                raise UserError(f"unknown task {name!r}: choose from {', '.join(tasks.TASKS)}")
            for batch_size in self.batch_sizes or ():
                if batch_size not in (own := tasks.TASKS[name].budgets):
                    raise UserError(
                        f"--batch-size {batch_size} is not one of {name}'s: choose from {', '.join(map(str, own))}"
                    )
        for optimizer in self.optimizers:
            contender(optimizer)


@cache
def left_out(task: str, optimizer: str) -> str | None:
    """Why the optimizer does not apply to the task, or None."""
    return contender(optimizer).lacks(tasks.load(task)[0].model())


@dataclass(frozen=True, slots=True)
class Cell:
    """One optimizer on one task at one batch size."""

    task: str
    batch_size: int
    steps: int
    optimizer: str

    def trial(self, found: Settings) -> Run:
        """The run of a tuning trial: all of them start from the same seed."""
        return Run(self.task, self.batch_size, self.steps, self.optimizer, found, SEARCH_SEED, test=False)

    def fresh(self, found: Settings, number: int) -> Run:
        """The run of the best setting on a fresh seed."""
        return replace(self.trial(found), seed=FIRST_FRESH_SEED + number, test=True)

    def folder(self, root: Path) -> Path:
        """Where the runs of this cell lie."""
        return root / "runs" / self.task / str(self.batch_size) / self.optimizer


class Comparison:
    """A plan and the folder where it is carried out."""

    def __init__(self, plan: Plan, root: Path) -> None:
        """Open the folder, or make it.

        Raises:
            UserError: the folder cannot be written, or holds another comparison.
        """
        plan.check()
        self.plan, self.root = plan, root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._check_same()
            records.write_json(root / "plan.json", asdict(plan))
        except OSError as error:
            raise UserError(f"cannot write to {root} ({error.strerror}): choose another folder with --out") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.storage = optuna.storages.RDBStorage(f"sqlite:///{root / 'trials.db'}")
        except Exception as error:  # SQLAlchemy, Alembic and SQLite each have a family of their own
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot read {root / 'trials.db'} ({reason}): delete it, the runs are kept") from None

    def _check_same(self) -> None:
        if (self.root / "plan.json").exists() and (stored := Plan.read(self.root)).steps != self.plan.steps:
            raise UserError(
                f"{self.root} holds a comparison with --steps {stored.steps}, not {self.plan.steps}: "
                "choose another folder with --out"
            )

    def run(self, processes: int, advance: Callable[[float], None] = lambda cost: None) -> None:
        """Do whatever of the plan is not done yet; ``advance`` hears how much of :meth:`cost` is done."""
        run_all((job for cell in self.plan.cells() for job in self._trials(cell)), processes, advance)

    def cost(self) -> float:
        """The cost of the whole plan, roughly in microseconds on one core."""
        runs = self.plan.trials + self.plan.seeds
        return sum(cell.steps * step_cost(cell.trial({})) * runs for cell in self.plan.cells())

    def _trials(self, cell: Cell) -> Iterable[Job]:
        study = self._study(cell)
        space = contender(cell.optimizer).space
        while len(study.trials) < self.plan.trials:
            study.ask(space)
        trials = study.trials[: self.plan.trials]
        waiting = {trial.number for trial in trials}

        def job(trial: optuna.trial.FrozenTrial) -> Job:
            def done(result: dict[str, Any]) -> Iterable[Job]:
                if not trial.state.is_finished():
                    failed = result["status"] == "failed"
                    state = optuna.trial.TrialState.FAIL if failed else None
                    study.tell(trial.number, None if failed else result["validation"], state=state)
                waiting.discard(trial.number)
                return () if waiting else self.fresh_seeds(cell)

            return Job(cell.trial(settings(trial.params)), cell.folder(self.root) / f"trial-{trial.number}", done)

        return [job(trial) for trial in trials]

    def _study(self, cell: Cell) -> optuna.Study:
        return optuna.create_study(
            storage=self.storage,
            study_name=f"{cell.task}/{cell.batch_size}/{cell.optimizer}",
            sampler=_sampler(),
            direction="maximize" if tasks.TASKS[cell.task].metric.goal == "max" else "minimize",
            load_if_exists=True,
        )

    def fresh_seeds(self, cell: Cell) -> list[Job]:
        """The runs of the cell's best setting on fresh seeds; none if no trial finished."""
        best = self.best(cell)
        if best is None:
            return []
        folder = cell.folder(self.root)
        return [Job(cell.fresh(best, i), folder / f"seed-{i}", lambda _: ()) for i in range(self.plan.seeds)]

    def trials(self, cell: Cell) -> list[tuple[Settings, float | None]]:
        """Settings and validation metric (None: failed) of the trials that have ended, in order."""
        folder = cell.folder(self.root)
        found = []
        for trial in self._study(cell).trials[: self.plan.trials]:
            run = cell.trial(settings(trial.params))
            if (result := records.result(folder / f"trial-{trial.number}", run)) is not None:
                found.append((run.settings, result["validation"]))
        return found

    def best(self, cell: Cell) -> Settings | None:
        """The settings of the trial with the best validation metric; None if none finished."""
        metric = tasks.TASKS[cell.task].metric
        best: tuple[Settings, float] | None = None
        for found, value in self.trials(cell):
            if value is not None and (best is None or metric.better(value, best[1])):
                best = found, value
        return best and best[0]


def _sampler() -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.QMCSampler(scramble=True, seed=SEARCH_SEED, warn_independent_sampling=False)
