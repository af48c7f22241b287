"""What the lab's commands do, with progress on a terminal and a table at the end."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch

from thalweg.arguments import did_you_mean
from thalweg.lab import contenders, records, tasks, terminal
from thalweg.lab.engine import SHARDINGS, How, Place, RunSpec, agreement, leave, variables, weights
from thalweg.lab.engine import train as run_one
from thalweg.lab.engine.run import stored
from thalweg.lab.errors import UserError
from thalweg.lab.instruments import MEASUREMENTS, Panel, measured, overhead
from thalweg.lab.progress import Progress
from thalweg.lab.reading import read
from thalweg.lab.recipes.page import write_page
from thalweg.lab.report import write_report
from thalweg.lab.search import comparison
from thalweg.lab.search.cells import Cell, Job, slug
from thalweg.lab.search.claims import FileClaims, beating
from thalweg.lab.search.forecast import expected
from thalweg.lab.search.plan import BUDGETS, Plan
from thalweg.lab.search.work import Assignment
from thalweg.lab.signals import handled
from thalweg.lab.summary import summarise
from thalweg.lab.tables import grid

if TYPE_CHECKING:
    import threading

    from thalweg.lab.engine import Training


@handled()
def compare(
    *,
    tasks: tuple[str, ...],
    batch_sizes: tuple[int, ...] | None,
    optimizers: tuple[str, ...],
    trials: int,
    studies: int,
    seeds: int,
    budget: str,
    steps: int | None,
    recipe: dict[str, Any],
    jobs: int | None,
    storage: str | None,
    timing: bool,
    dry_run: bool,
    out: Path | None,
) -> None:
    """``thalweg compare``: tune, train, time, report."""
    terminal.interruptible()
    if budget not in (*BUDGETS, "both"):
        raise UserError(
            f"--budget must be short, long or both, got {budget!r}{did_you_mean(budget, (*BUDGETS, 'both'))}"
        )
    root = out or Path("runs") / "-".join(map(slug, dict.fromkeys(tasks)))
    plan = Plan(
        tasks=tasks,
        batch_sizes=batch_sizes,
        optimizers=optimizers or contenders.DEFAULTS,
        trials=trials,
        studies=studies,
        seeds=seeds,
        steps=steps,
        budgets=BUDGETS if budget == "both" else (budget,),
        recipe=recipe,
    )
    cells, notes = plan.cells(root)
    processes = jobs or comparison.default_jobs()
    console = terminal.console()
    for note in notes:
        console.print(f"note: {note}")
    if dry_run:
        _say_what_would_run(cells, processes, root, console, timing=timing)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            cell.record(root, terminal.command())
    except OSError as error:
        raise records.unwritable(error, root) from None
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes))  # OMP_NUM_THREADS holds
    assignment = Assignment(root, cells, storage, threads)
    if storage is not None:
        from thalweg.lab.search.work import open_claims

        open_claims(assignment)  # or a clear error now
    runs = sum(cell.trials * cell.studies + cell.seeds for cell in cells if cell.left_out is None)
    console.print(
        f"{len({cell.optimizer for cell in cells})} optimizers on {', '.join(dict.fromkeys(tasks))}: {runs} runs at "
        f"least, {processes} at a time, in {root}"
    )
    with Progress(console, cells, root) as progress:
        comparison.run(assignment, processes, progress.hear)
        progress.finish()
        if timing:
            progress.say("timing steps, all optimizers in turn")
            comparison.run(assignment, 1, timing=True)
    _conclude(root, terminal.command(), console)


def _say_what_would_run(cells: list[Cell], processes: int, root: Path, console: Any, *, timing: bool) -> None:
    for cell in cells:
        if cell.left_out is not None:
            console.print(f"{_where(cell)}: left out, {cell.left_out}")
            continue
        console.print(
            f"{_where(cell)}: {cell.studies} x {cell.trials} trials and {cell.seeds} seeds of {cell.steps} steps, "
            f"about {terminal.duration(cell.cost() / 1e6)} on one core"
        )
    found = expected(cells, processes, timing=timing)
    parts = {"training": found.training, "evaluations, models and records": found.beside, "timing steps": found.timing}
    said = ", ".join(f"{what} {terminal.duration(seconds)}" for what, seconds in parts.items() if seconds)
    more = f", at most {terminal.duration(found.beyond)} more beyond edges of ranges" if found.beyond else ""
    console.print(
        f"in all about {terminal.duration(found.total)} ({said}) and {terminal.duration(found.starting)} to start "
        f"processes{more}; {processes} runs at a time on idle cores, in {root}",
        soft_wrap=True,
    )


def _where(cell: Cell) -> str:
    return f"{cell.task} {cell.batch_size} {cell.budget} {cell.optimizer}"


def report(folder: Path) -> None:
    """``thalweg report``: the report of what is stored."""
    terminal.interruptible()
    if (page := write_page(folder)) is not None:
        terminal.console().print(f"report: {page.resolve()}", soft_wrap=True)
        return
    _conclude(folder, f"thalweg report {folder}", terminal.console())


def _conclude(root: Path, command: str, console: Any) -> None:
    """The report, then the tables: whatever the terminal does, the report is there."""
    found = read(root)
    if not found.tables:
        damaged = f"; {found.problems[0]}" if found.problems else ""
        raise UserError(f"{root} holds no comparison{damaged}: run `thalweg compare TASK --out {root}` first")
    summary = summarise(found, "; ".join(found.commands) or command)
    try:
        path = write_report(summary, root / "report.html")
    except OSError as error:
        raise records.unwritable(error, root / "report.html") from None
    for table in summary.tables:
        console.print(grid(table, summary, console))
    for problem in found.problems[:10]:
        console.print(f"not used: {problem}", soft_wrap=True)
    if len(found.problems) > 10:
        console.print(f"... and {len(found.problems) - 10} damaged records more")
    console.print(f"report: {path.resolve()}", soft_wrap=True)


@handled()
def train(
    *,
    task: str,
    optimizer: str,
    batch_size: int | None,
    given: dict[str, float],
    steps: int | None,
    fields: dict[str, Any],
    micro_batch: int | None,
    sharding: str,
    workers: int,
    checkpoint_seconds: float,
    resume: bool,
    track: tuple[str, ...],
    instruments: int | None,
    save_model: Path | None,
    init_from: Path | None,
    out: Path | None,
) -> None:
    """``thalweg train``: one run, on one process or many."""
    terminal.interruptible()
    if sharding not in SHARDINGS:
        near = did_you_mean(sharding, SHARDINGS)
        raise UserError(f"--sharding must be one of {', '.join(SHARDINGS)}, got {sharding!r}{near}")
    own = tasks.find(task)
    size = batch_size or own.budgets[0].batch_size
    budget = tasks.budget_at(own.budgets, size, "short")
    chosen = contenders.contender(optimizer)
    if chosen.schedule is not None and fields["schedule"] == "cosine":
        fields = {**fields, "schedule": chosen.schedule}
    spec = RunSpec(
        task=task,
        batch_size=size,
        steps=steps or (budget or own.budgets[0]).steps,
        optimizer=optimizer,
        settings=_settings(chosen, size, given),
        test=True,
        init="" if init_from is None else weights.hash_of(init_from),
        **fields,
    ).stamped()
    folder = out or Path("runs") / "train" / slug(task) / f"{slug(optimizer)}-{spec.hash}"
    rank, console = int(os.environ.get("RANK", "0")), terminal.console()
    panel = None
    if instruments is not None:
        if instruments > spec.steps:
            raise UserError(f"--instruments must be an integer from 1 to {spec.steps} (the steps), got {instruments}")
        panel = Panel(instruments, lambda line: console.print(line, soft_wrap=True))
    how = How(micro_batch, sharding, workers, checkpoint_seconds, _trackers(track), panel, save_model, init_from)

    def heard(training: Training, event: str) -> None:
        if event == "evaluation" and rank == 0:
            line = training.history[-1]
            console.print(
                f"step {line['step']}/{spec.steps}  loss {line['loss']:.4g}  validation {line['validation']:.4g}  "
                f"{line['seconds']:.1f} s"
            )

    variables.check(spec.precision)
    with ExitStack() as stack:
        with agreement.on_all():
            _check_room_for(save_model, init_from)
            if rank == 0:
                _make_room(folder, spec, resume)
                claimed = stack.enter_context(_claimed(spec, folder, how, resume))
            elif not resume:
                raise UserError("--no-resume does not go with several processes: remove the folder, or choose another")

        def also_ours(training: Training, event: str) -> None:
            if rank == 0:
                claimed.check()
            heard(training, event)

        result = run_one(spec, folder, how=how, heard=also_ours, say=lambda line: console.print(line, soft_wrap=True))
        if rank == 0:
            claimed.result = result
    if rank == 0:
        if panel is not None:
            console.print(overhead(folder, result), soft_wrap=True)
        said = ", ".join(f"{key} {result[key]:.6g}" for key in ("validation", "test") if result.get(key) is not None)
        console.print(f"{result['status']}: {said or result['reason']}")
        console.print(f"records: {folder.resolve()}", soft_wrap=True)
        if save_model is not None:
            kept = result["status"] == "finished"
            console.print(f"model: {save_model.resolve() if kept else 'none, as the run failed'}", soft_wrap=True)
    leave()
    if result["status"] == "failed":
        raise SystemExit(1)


class _Held:
    """A run's folder while we train in it: ``check`` raises where it is not ours any more."""

    def __init__(self, folder: Path, lost: threading.Event | None) -> None:
        self.folder, self.lost = folder, lost
        self.result: dict[str, Any] | None = None

    def check(self) -> None:
        if self.lost is not None and self.lost.is_set():
            raise UserError(f"another process trains in {self.folder} now: choose another folder with --out")


@contextmanager
def _claimed(spec: RunSpec, folder: Path, how: How, resume: bool) -> Iterator[_Held]:
    """The folder to ourselves, unless the run is complete there."""
    if (found := stored(folder, spec)) is not None:
        if isinstance(how.watch, Panel) and not measured(folder, how.watch.every, spec.steps, found):
            raise _without(folder, f"--instruments {how.watch.every}")
        if how.save_model is not None and found["status"] == "finished" and weights.run_of(how.save_model) != spec.hash:
            raise _without(folder, f"--save-model {how.save_model}")
        yield _Held(folder, None)
        return
    claim = FileClaims().take(Job(spec, Place(), folder))
    if claim is None:
        raise UserError(f"another process trains in {folder}: wait for it, or choose another folder with --out")
    if not resume:
        for name in ("checkpoint.pt", MEASUREMENTS):
            (folder / name).unlink(missing_ok=True)
    with beating(claim) as lost:
        held = _Held(folder, lost)
        try:
            yield held
        finally:
            claim.release(held.result)


def _without(folder: Path, option: str) -> UserError:
    return UserError(
        f"{folder} holds this run, trained without {option}: --no-resume trains it again, --out puts it elsewhere"
    )


def _check_room_for(save_model: Path | None, init_from: Path | None) -> None:
    """Raise now where ``--save-model`` could not be written after hours of training."""
    if save_model is None:
        return
    if save_model.is_dir():
        raise UserError(f"--save-model must be a file, got the folder {save_model}")
    if init_from is not None and save_model.exists() and save_model.samefile(init_from):
        raise UserError(f"--save-model must not be the file of --init-from, got {save_model}")
    try:
        save_model.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=save_model.parent):
            pass
    except OSError as error:
        raise UserError(f"--save-model: cannot write to {save_model.parent} ({error.strerror or error})") from None


def _make_room(folder: Path, spec: RunSpec, resume: bool) -> None:
    """The folder of this run and no other's; without ``resume``, of nothing before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "spec.json").exists():
            try:
                before = records.read_json(folder / "spec.json").get("hash")
            except records.Damaged:
                before = None
            if before != spec.hash:
                if (folder / "result.json").exists():
                    raise UserError(f"{folder} holds another run ({before}): choose another folder with --out")
                (folder / MEASUREMENTS).unlink(missing_ok=True)
        if not resume:  # the rest goes when nobody else can be at it
            (folder / "result.json").unlink(missing_ok=True)
    except OSError as error:
        raise records.unwritable(error, folder) from None


def _settings(chosen: contenders.Contender, batch_size: int, given: dict[str, float]) -> dict[str, float]:
    """The defaults with what is given; what the optimizer does not take is refused here, before there is a run."""
    known = contenders.defaults(chosen, batch_size)
    if unknown := sorted(set(given) - set(known)):
        near = "".join(did_you_mean(name, known) for name in unknown)
        raise UserError(f"--set: {chosen.name} has no {', '.join(unknown)}; it has {', '.join(known)}{near}")
    if given and _refusal(chosen, known) is None and (says := _refusal(chosen, known | given)) is not None:
        raise UserError(f"--set: {says}")
    return known | given


def _refusal(chosen: contenders.Contender, settings: dict[str, float]) -> str | None:
    """What the optimizer says against settings, built for a small layer; None: nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        try:
            chosen.build(torch.nn.Linear(4, 4), settings)
        except ValueError as error:
            return str(error)
    return None


def _trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are installed; one that was asked for by name and is not is an error, TensorBoard is left out."""
    from importlib.util import find_spec

    found = []
    for name in names:
        if name == "none":
            continue
        if name not in ("tensorboard", "wandb", "mlflow"):
            near = did_you_mean(name, ("tensorboard", "wandb", "mlflow", "none"))
            raise UserError(f"--track must be of tensorboard, wandb, mlflow or none, got {name!r}{near}")
        if find_spec(name) is not None:
            found.append(name)
        elif name != "tensorboard":
            raise UserError(f"--track {name} needs {name}: pip install {name}")
    return tuple(found)


def list_tasks() -> None:
    """``thalweg tasks``."""
    console = terminal.console()
    width = max(map(len, tasks.TASKS))
    for name, task in tasks.TASKS.items():
        sizes = ", ".join(f"{one.batch_size} ({one.steps} steps, {one.name})" for one in task.budgets)
        console.print(f"{name:{width}} {task.title}; batch sizes {sizes}", soft_wrap=True)
    console.print("Your own: module:Class, a subclass of thalweg.lab.tasks.Task.", soft_wrap=True)


def list_optimizers() -> None:
    """``thalweg optimizers``."""
    console = terminal.console()
    width = max(map(len, contenders.CONTENDERS))
    for name, one in contenders.CONTENDERS.items():
        mark, searched = "*" if name in contenders.DEFAULTS else " ", ", ".join(contenders.defaults(one, 1))
        console.print(f"{mark} {name:{width}} {one.says}; searched: {searched}", soft_wrap=True)
    console.print("* compared unless --optimizers says otherwise. Any other class by its dotted name.", soft_wrap=True)
