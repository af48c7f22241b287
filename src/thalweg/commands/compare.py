"""``thalweg compare``: a tuned comparison of optimizers on tasks, which ends in a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from thalweg.commands import terminal
from thalweg.commands.judged import Judged
from thalweg.commands.options import LARGEST, MOST, MOST_JOBS, flag, folder, names, switch, whole, wholes
from thalweg.commands.report import judge, write_and_print
from thalweg.lab.processes import begin_server
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError
from thalweg.records.regimen import REGIMEN, Regimen

if TYPE_CHECKING:
    from thalweg.lab.search.cells import PlannedCell


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Compare(Judged, Regimen):
    """The options of ``thalweg compare``."""

    batch_size: Annotated[tuple[int, ...], wholes("--batch-size", 1, LARGEST)] = ()
    """Batch sizes (default: the task's own)."""

    optimizers: Annotated[tuple[str, ...], names("--optimizers")] = ()
    """Comma-separated names (see `thalweg optimizers`), or dotted names of classes."""

    trials: Annotated[int, whole(1, MOST)] = 8
    """Tuning trials per study; two rounds of half as many follow."""

    studies: Annotated[int, whole(1, MOST)] = 3
    """Tuning studies; the setting whose best result is the median is chosen."""

    tuning_seeds: Annotated[int, whole(1, MOST)] = 2
    """Seeds that each trial is trained from."""

    seeds: Annotated[int, whole(1, MOST)] = 5
    """Fresh seeds that the chosen setting is trained on."""

    budget: Literal["short", "long", "both"] = "both"
    """Which of the task's training lengths: short, long or both."""

    steps: Annotated[int | None, whole(1, 10**9)] = None
    """Training steps (default: the task's)."""

    jobs: Annotated[int | None, whole(1, MOST_JOBS)] = None
    """Parallel runs (default: one per core)."""

    storage: str | None = None
    """Optuna storage through which workers on several machines share the runs: a database URL, grpc://host:port or a
    journal file. Not needed where --out is a shared folder."""

    timing: Annotated[bool, switch] = True
    """Afterwards, time the steps of all optimizers, interleaved."""

    dry_run: Annotated[bool, flag] = False
    """Print what would run and for how long, and run nothing."""

    config: Path | None = None
    """YAML file with values for these options."""

    out: Annotated[Path | None, folder] = None
    """Output folder (default: runs/TASK)."""


@handled()
def compare(*tasks: str, options: Compare | None = None) -> None:
    """Tune and compare optimizers on tasks, and write a report.

    Every optimizer is tuned with as many trials, the first of them the same for all, and the chosen setting is trained
    on fresh seeds. Started again, the command continues; started elsewhere with the same --out or --storage, it joins
    the work.

    Args:
        tasks: Names (see `thalweg tasks`), or module:Class.
        options: what to compare, and how.
    """
    if not tasks:
        raise UserError("name a TASK: see `thalweg tasks`, or `thalweg compare --help`")
    options = options or Compare()
    if not options.dry_run:
        begin_server()
    from thalweg.commands.progress import Progress
    from thalweg.lab import contenders
    from thalweg.lab.search import comparison
    from thalweg.lab.search.cells import slug
    from thalweg.lab.search.plan import BUDGETS, ComparisonPlan

    terminal.interruptible()
    root = options.out or Path("runs") / "-".join(map(slug, dict.fromkeys(tasks)))
    plan = ComparisonPlan(
        tasks=tasks,
        batch_sizes=options.batch_size or None,
        optimizers=options.optimizers or contenders.DEFAULTS,
        trials=options.trials,
        studies=options.studies,
        seeds=options.seeds,
        tuning_seeds=options.tuning_seeds,
        steps=options.steps,
        budgets=BUDGETS if options.budget == "both" else (options.budget,),
        regimen={name: getattr(options, name) for name in REGIMEN},
    )
    cells, notes = plan.cells(root)
    processes = options.jobs or comparison.default_jobs()
    console = terminal.console()
    for note in notes:
        console.print(f"note: {note}")
    from thalweg.commands import showing

    if options.dry_run:
        _say_what_would_run(cells, processes, root, console, timing=options.timing)
        for said in showing.lines(cells, root, options.reference):
            console.print(said, soft_wrap=True)
        return
    assignment = comparison.begin(root, cells, terminal.command(), processes, options.storage)
    judge(root, options)  # an error now, not after the training
    console.print(
        f"{len({cell.optimizer for cell in cells})} optimizers on {', '.join(dict.fromkeys(tasks))}: "
        f"{sum(cell.runs for cell in cells)} runs, {processes} at a time, in {root}"
    )
    for said in showing.lines(cells, root, options.reference):
        console.print(said, soft_wrap=True)
    listener = showing.Listener(cells, root, options.reference, lambda said: console.print(said, soft_wrap=True))

    def on_message(what: str, value: Any) -> None:
        progress.on_message(what, value)
        listener.on_message(what, value)

    with Progress(console, cells, root) as progress:
        comparison.run(assignment, processes, on_message)
        progress.finish()
        if options.timing:
            progress.say("timing steps, interleaved")
            comparison.run(assignment, 1, timing=True)
    write_and_print(root, terminal.command(), console, options)


def _say_what_would_run(cells: list[PlannedCell], processes: int, root: Path, console: Any, *, timing: bool) -> None:
    for cell in cells:
        if cell.left_out is not None:
            console.print(f"{_where(cell)}: left out, {cell.left_out}")
            continue
        console.print(
            f"{_where(cell)}: {cell.studies} x {cell.points} trials from {cell.tuning_seeds} "
            f"seed{'s' * (cell.tuning_seeds > 1)} each, and "
            f"{cell.seeds} seeds, of {cell.steps} steps, "
            f"about {terminal.duration(cell.cost() / 1e6)} on one core",
            soft_wrap=True,
        )
    from thalweg.lab.search.forecast import expected

    found = expected(cells, processes, timing=timing)
    parts = {"training": found.training, "evaluations, models and records": found.beside, "timing steps": found.timing}
    said = ", ".join(f"{what} {terminal.duration(seconds)}" for what, seconds in parts.items() if seconds)
    console.print(
        f"in total about {terminal.duration(found.total)} ({said}) and {terminal.duration(found.starting)} to start "
        f"processes; {processes} runs at a time on idle cores, in {root}",
        soft_wrap=True,
    )


def _where(cell: PlannedCell) -> str:
    return f"{cell.task} {cell.batch_size} {cell.budget} {cell.optimizer}"
