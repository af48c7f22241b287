"""What a comparison is asked to do, as cells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from thalweg.lab import tasks
from thalweg.lab.contenders import contender
from thalweg.lab.engine import variables
from thalweg.lab.engine.source import code_hash
from thalweg.lab.engine.spec import RunSpec
from thalweg.lab.failures import blame_task
from thalweg.lab.search.cells import AMOUNTS, PlannedCell, count_in, same_regimen, stored_cell
from thalweg.lab.tasks import Budget
from thalweg.records.errors import UserError
from thalweg.records.regimen import REGIMEN, Regimen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from thalweg.lab.tasks import Task

BUDGETS = ("short", "long")


@dataclass(frozen=True)
class ComparisonPlan:
    """What to compare.

    ``batch_sizes`` None: each task's own. ``steps`` None: the task's short and long budgets, as ``budgets`` says.
    ``regimen`` holds fields of :class:`~thalweg.records.regimen.Regimen` that differ from their defaults.
    """

    tasks: tuple[str, ...]
    batch_sizes: tuple[int, ...] | None
    optimizers: tuple[str, ...]
    trials: int
    studies: int
    seeds: int
    steps: int | None = None
    budgets: tuple[str, ...] = BUDGETS
    regimen: dict[str, Any] = field(default_factory=dict)
    tuning_seeds: int = 2

    def cells(self, root: Path) -> tuple[list[PlannedCell], list[str]]:
        """Every optimizer in every table, and what is left out of the comparison, a sentence each.

        Raises:
            UserError: nothing is left to compare, an unknown name, a value that no run can have, a variable of the
                environment that contradicts it, or a folder that holds a comparison with another regimen.
            TaskFault: a task's code raises.
        """
        for optimizer in dict.fromkeys(self.optimizers):
            contender(optimizer)
        variables.check(self.regimen.get("precision", "no"))
        found: list[PlannedCell] = []
        notes: list[str] = []
        for name in dict.fromkeys(self.tasks):
            task, splits = tasks.load(name)
            sizes = self.batch_sizes or tuple(one.batch_size for one in task.budgets)
            with blame_task(name, "model()"):
                model = task.model()
                lacks = {optimizer: contender(optimizer).lacks(model) for optimizer in dict.fromkeys(self.optimizers)}
            for batch_size in dict.fromkeys(sizes):
                if batch_size > len(splits.train):
                    notes.append(
                        f"{name} at batch size {batch_size} is left out: it has {len(splits.train)} training examples"
                    )
                    continue
                for budget in self._budgets(task, batch_size):
                    for optimizer, lacking in lacks.items():
                        found.append(self._cell(root, name, budget, optimizer, lacking))
            if found and found[-1].regimen["label_smoothing"] and task.label_smoothing is None:  # before any run starts
                raise UserError(f"label_smoothing must be 0: the loss of {name} does not support it")
        if not found:
            raise UserError(f"nothing to compare: {'; '.join(notes)}" if notes else "nothing to compare: name a task")
        return found, notes

    def _budgets(self, task: Task, batch_size: int) -> Iterator[Budget]:
        if self.steps is not None:
            yield Budget(batch_size, self.steps, tasks.target_of(task, batch_size, self.steps), "custom")
            return
        for name in self.budgets:
            if (budget := tasks.budget_at(task.budgets, batch_size, name)) is not None:
                yield budget

    def _cell(self, root: Path, task: str, budget: Budget, optimizer: str, lacking: str | None) -> PlannedCell:
        defaults = RunSpec(task, budget.batch_size, budget.steps, optimizer, {})
        regimen = {name: getattr(defaults, name) for name in REGIMEN} | self.regimen
        if contender(optimizer).schedule is not None:
            regimen["schedule"] = contender(optimizer).schedule
        grid = contender(optimizer).grid
        cell = PlannedCell(
            task=task,
            batch_size=budget.batch_size,
            steps=budget.steps,
            budget=budget.name,
            target=budget.target,
            optimizer=optimizer,
            space=contender(optimizer).space,
            regimen=regimen,
            trials=self.trials if grid is None else grid,
            studies=self.studies if grid is None else 1,
            seeds=self.seeds,
            code=code_hash(task, optimizer),
            data=tasks.data_hash(task),
            left_out=lacking,
            tuning_seeds=self.tuning_seeds,
        )
        cell.spec({}, 0, test=False)  # a value that no run can have is found here
        return _grow_only(cell, stored_cell(cell.folder(root)), root)


def _grow_only(cell: PlannedCell, stored: dict[str, Any], root: Path) -> PlannedCell:
    """The cell with at least as much as its folder has been asked for before."""
    if isinstance(before := stored.get("recipe"), dict):
        before = asdict(Regimen()) | before  # an option that has come since had its default
        if not same_regimen(cell.regimen, before):
            differ = ", ".join(sorted(key for key, value in cell.regimen.items() if before.get(key) != value))
            raise UserError(
                f"{root} holds a comparison with other {differ or 'settings'}: choose another folder with --out"
            )

    most: dict[str, Any] = {name: max(getattr(cell, name), count_in(stored, name) or 0) for name in AMOUNTS}
    return replace(cell, **most)
