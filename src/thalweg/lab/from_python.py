"""A comparison from Python, a notebook's cell or a script, as ``thalweg compare`` makes one from a shell."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from thalweg.arguments import check_integer, did_you_mean, reject
from thalweg.lab import contenders, tasks
from thalweg.lab.engine.source import code_hash
from thalweg.lab.search import comparison
from thalweg.lab.search.cells import PlannedCell, slug
from thalweg.lab.search.plan import BUDGETS, ComparisonPlan
from thalweg.records.errors import UserError
from thalweg.records.regimen import REGIMEN

MOST = 10_000  # trials, studies, seeds of either kind
_imported: dict[str, int] = {}  # when the files of users' tasks were last changed, as we have them


def compare(
    task: str | type[tasks.Task],
    *,
    optimizers: Sequence[str] = contenders.DEFAULTS,
    batch_sizes: Sequence[int] | None = None,
    trials: int = 8,
    studies: int = 3,
    tuning_seeds: int = 2,
    seeds: int = 5,
    budget: str = "both",
    steps: int | None = None,
    jobs: int | None = None,
    timing: bool = True,
    out: str | Path | None = None,
    say: Callable[[str], object] = print,
    **regimen: Any,
) -> Path:
    """Tune and compare optimizers on a task, as ``thalweg compare`` does; what is complete is not run again.

    Runs are made by worker processes. They import the task, so that it has to be in a file of its own: in a notebook,
    one that ``%%writefile`` wrote. In a script the call belongs below ``if __name__ == "__main__":``. Ctrl-C, or the
    kernel's "interrupt", stops; the same call goes on. ``thalweg.report.Report(folder)`` shows what was found.

    Args:
        task: a name (see ``thalweg tasks``), ``"module:Class"``, or that class.
        optimizers: names (see ``thalweg optimizers``), or dotted names of classes.
        batch_sizes: None for the task's own.
        trials: tuning trials per study, 1 to 10000; two rounds of half as many follow.
        studies: tuning studies, of which the median is taken, 1 to 10000.
        tuning_seeds: seeds that each trial is trained from, 1 to 10000.
        seeds: fresh seeds that the chosen setting is trained on, 1 to 10000.
        budget: which of the task's training lengths, "short", "long" or "both".
        steps: training steps in their place.
        jobs: runs at a time; None for one per core, or one on a GPU.
        timing: whether the steps of all optimizers are timed afterwards, in turns.
        out: the folder; None for ``runs/TASK``.
        say: what is called with each line of progress.
        regimen: how all are trained, as fields of :class:`thalweg.records.regimen.Regimen`: ``schedule``, ``clip``...

    Returns:
        The folder with the records.

    Raises:
        ValueError: an argument is out of its range.
        UserError: an unknown name, or a folder that cannot be used; one line that says what to do.
        TaskFault: the task's code raises.
        KeyboardInterrupt: the workers have stopped.
    """
    for name, value in {"trials": trials, "studies": studies, "tuning_seeds": tuning_seeds, "seeds": seeds}.items():
        check_integer(name, value, 1, MOST + 1)
    for name, given in {"steps": steps, "jobs": jobs}.items():
        if given is not None:
            check_integer(name, given, 1)
    for size in batch_sizes or ():
        check_integer("batch_sizes", size, 1)
    if budget not in (*BUDGETS, "both"):
        reject("budget", budget, "'short', 'long' or 'both'")
    if isinstance(optimizers, str) or not optimizers:
        reject("optimizers", optimizers, "a sequence of names")
    for name in set(regimen) - set(REGIMEN):
        raise TypeError(f"compare() has no argument {name!r}{did_you_mean(name, REGIMEN)}")
    task = _name(task)
    _import_again(task)
    root = Path("runs") / slug(task) if out is None else Path(out)
    plan = ComparisonPlan(
        tasks=(task,),
        batch_sizes=tuple(batch_sizes) if batch_sizes else None,
        optimizers=tuple(optimizers),
        trials=trials,
        studies=studies,
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        steps=steps,
        budgets=BUDGETS if budget == "both" else (budget,),
        regimen=regimen,
    )
    cells, notes = plan.cells(root)
    for note in notes:
        say(f"note: {note}")
    processes = jobs or comparison.default_jobs()
    assignment = comparison.begin(root, cells, f"thalweg.lab.compare({task!r})", processes)
    progress = _Progress(cells, say)
    comparison.run(assignment, processes, progress.on_message)
    if timing:
        say("timing steps, interleaved")
        comparison.run(assignment, 1, timing=True)
    say(f"all runs are complete, in {root}")
    return root


def _name(task: str | type[tasks.Task]) -> str:
    if isinstance(task, str):
        return task
    if not (isinstance(task, type) and issubclass(task, tasks.Task)):
        reject("task", task, "a name, 'module:Class', or a subclass of thalweg.lab.tasks.Task")
    for name, known in tasks.TASKS.items():
        if known is task:
            return name
    if task.__module__ == "__main__":
        raise UserError(
            f"the task {task.__qualname__} is defined where worker processes do not find it: write it to a file, in a "
            f"notebook with %%writefile my_task.py, and compare 'my_task:{task.__qualname__}'"
        )
    return f"{task.__module__}:{task.__qualname__}"


def _import_again(task: str) -> None:
    """Have the task as its file is now, as the workers will: a notebook's cell may have written it anew."""
    module = sys.modules.get(task.partition(":")[0])
    if ":" not in task or module is None or (file := getattr(module, "__file__", None)) is None:
        return
    changed = Path(file).stat().st_mtime_ns
    if _imported.get(task) != changed:
        importlib.invalidate_caches()
        importlib.reload(module)
        for cached in (tasks.find, tasks.load, tasks.data_hash, code_hash):
            cached.cache_clear()
        _imported[task] = changed


class _Progress:
    """A line for each tenth of the work, and for each run that failed otherwise than by diverging."""

    def __init__(self, cells: list[PlannedCell], say: Callable[[str], object]) -> None:
        self.say, self.tenth, self.began = say, 0, time.monotonic()
        self.total = sum(cell.cost() for cell in cells)
        self.parts: dict[Path, float] = {}

    def on_message(self, what: str, value: Any) -> None:
        if what == "note":
            self.say(value)
        elif what == "run" and not self.parts:
            self.began = time.monotonic()  # of training: processes have started
        elif what == "part":
            job, share = value
            self.parts[job.folder] = share * job.cost
        elif what == "end":
            job, result = value
            self.parts[job.folder] = job.cost
            if result["status"] == "failed" and result["failure"] != "diverged":
                self.say(f"{job.label}: {result['failure']}: {result['reason']}")
        done = min(sum(self.parts.values()) / max(1.0, self.total), 1.0)
        if int(10.0 * done) > self.tenth:
            self.tenth = int(10.0 * done)
            taken = time.monotonic() - self.began
            self.say(f"{10 * self.tenth} %, {taken:.0f} s, about {taken * (1.0 - done) / done:.0f} s left")
