"""``thalweg reproduce``: recipes, one after the other, with progress and a page at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from thalweg.commands import terminal
from thalweg.commands.options import MOST_JOBS, at_least, flag, folder, memory_size, whole
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError
from thalweg.studies import recipe as kept

TFLOPS = 100.0
"""What one device of a cluster sustains in bfloat16 on a large network: a third of an A100's peak."""
MEMORY = "80GB"
"""What it has."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from thalweg.lab.search.cells import PlannedCell
    from thalweg.studies.recipe import Recipe, Scale


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """The options of ``thalweg reproduce``."""

    scale: Literal["lab", "paper"] = "lab"
    """lab (two cores, minutes to hours) or paper (a cluster)."""

    jobs: Annotated[int | None, whole(1, MOST_JOBS)] = None
    """Parallel runs (default: one per core)."""

    storage: str | None = None
    """As for `thalweg compare`."""

    devices: Annotated[int, whole(1)] = 1
    """Devices per run, for the estimate of --dry-run."""

    tflops: Annotated[float | None, at_least(1e-3)] = None
    """TFLOP/s that a device sustains, for the estimate of --dry-run (default: 100 at paper scale, this CPU at lab)."""

    memory: str | None = None
    """Memory of a device, for what --dry-run says of it (default: 80GB at paper scale)."""

    dry_run: Annotated[bool, flag] = False
    """Print what would be downloaded, how long it takes, how large it is and whether it fits, and run nothing."""

    config: Path | None = None
    """YAML file with values for these options."""

    out: Annotated[Path | None, folder] = None
    """Output folder (default: runs/reproduce-SCALE)."""


@handled()
def reproduce(*recipes: str, options: Reproduce | None = None) -> None:
    """Run the slides' experiments, and write a page that compares them with the printed numbers.

    Started again, the command continues; started elsewhere with the same --out or --storage, it joins the work; under
    torchrun all processes work on one run at a time.

    Args:
        recipes: `list`, names that it prints, `all` whose data and weights are there, or your own FILE.toml.
        options: how to run them.
    """
    if not recipes:
        raise UserError("name a RECIPE: see `thalweg reproduce list`")
    options = options or Reproduce()
    console = terminal.console()
    if recipes == ("list",):
        for name in kept.names():
            found = kept.find(name)
            console.print(f"{name:22} {found.title} ({', '.join(found.scales)})", soft_wrap=True)
        console.print(f"Your own: FILE.toml, written as those in {kept.folder()} are.", soft_wrap=True)
        return
    from thalweg.lab.engine import leave_process_group
    from thalweg.lab.search import comparison
    from thalweg.studies.page import write_page
    from thalweg.studies.run import reproduce as run
    from thalweg.studies.run import resolved

    terminal.interruptible()
    everything, scale = recipes == ("all",), options.scale
    wanted = [resolved(kept.find(name)) for name in (kept.names() if everything else dict.fromkeys(recipes))]
    if everything:
        wanted = [one for one in wanted if scale in one.scales]
    scales = [_scale(one, scale) for one in wanted]
    if options.dry_run:
        tflops = TFLOPS if options.tflops is None and scale == "paper" else options.tflops
        memory = memory_size(MEMORY if options.memory is None and scale == "paper" else options.memory, "--memory")
        seconds = []
        for one, own in zip(wanted, scales, strict=True):
            with _left_out(everything, console):
                seconds.append(_say_what_would_run(one, own, options.devices, tflops, memory, console))
        where = _where(options.devices, tflops)
        console.print(f"in total about {terminal.duration(sum(seconds))} {where}", soft_wrap=True)
        return
    root = options.out or Path("runs") / f"reproduce-{scale}"
    first = os.environ.get("RANK", "0") == "0"
    for one in wanted:
        if first:
            console.print(f"{one.name}: {one.title}")
        with _left_out(everything, console):
            run(
                one, _text(one, recipes), scale, root / one.name, command=terminal.command(),
                jobs=options.jobs or comparison.default_jobs(), storage=options.storage, say=console.print,
                watched=lambda cells, folder=root / one.name: _watched(cells, folder, console, first),  # type: ignore[misc]
            )  # fmt: skip
        if first and (page := write_page(root)) is not None:
            console.print(f"report: {page.resolve()}", soft_wrap=True)
    leave_process_group()


@contextmanager
def _left_out(everything: bool, console: Any) -> Iterator[None]:
    """Of all recipes, one whose data or weights are missing is said to be left out; of those named it is an error."""
    try:
        yield
    except UserError as error:
        if not everything:
            raise
        console.print(f"  left out: {error}", soft_wrap=True, markup=False)


def _scale(one: Recipe, scale: str) -> Scale:
    if scale not in one.scales:
        raise UserError(f"the recipe {one.name} has no scale {scale!r}: it has {', '.join(one.scales)}")
    return one.scales[scale]


def _text(one: Recipe, asked: tuple[str, ...]) -> str:
    own = next((name for name in asked if name.endswith(".toml") and Path(name).stem == one.name), None)
    if own is not None:
        return Path(own).read_text("utf-8")
    return kept.text_of(one.name)


@contextmanager
def _watched(cells: list[PlannedCell], root: Path, console: Any, first: bool) -> Iterator[Callable[[str, Any], None]]:
    if not first:
        yield lambda what, value: None
        return
    from thalweg.commands.progress import Progress

    with Progress(console, cells, root) as progress:
        yield progress.on_message
        progress.finish()


def _say_what_would_run(
    one: Recipe, scale: Scale, devices: int, tflops: float | None, memory: int | None, console: Any
) -> float:
    """Say it, and return about how many seconds it takes."""
    console.print(f"{one.name}: {one.title}")
    if scale.measure:
        took = f"about {terminal.duration(60.0 * scale.minutes)}" if scale.minutes else "an unknown time"
        console.print(f"  a measurement, {scale.measure}: {took} on two cores; download: nothing", soft_wrap=True)
        return 60.0 * scale.minutes
    from thalweg.lab.search.forecast import START
    from thalweg.studies.forecast import forecast

    total = 0.0
    for table in scale.comparisons:
        found = forecast(table, devices)
        seconds = found.whole(tflops)
        total += seconds or 0.0
        steps = "steps set by the size of its data" if found.steps is None else f"{found.steps:,} steps"
        shared = f" of {found.devices}, {table.sharding}" if found.devices > 1 else ""
        fits = "" if memory is None else f", {found.cost.verdict(memory)} in {terminal.size(memory)}"
        work = "" if found.operations is None else f"{found.operations:.2g} operations, "
        took = "an unknown time" if seconds is None else f"about {terminal.duration(seconds)}"
        console.print(
            f"  {table.task} at batch size {table.batch_size:,}: {found.runs} runs of {steps}; {work}{took}; "
            f"{found.parameters / 1e6:,.2f} M parameters, at most {terminal.size(found.cost.total)} a device{shared} "
            f"({found.costliest}; parameters, gradients, state and a step's temporary, without activations){fits}; "
            f"download: {found.download or 'nothing'}",
            soft_wrap=True,
        )
    return total + 2.0 * START  # of workers, and of the one that times steps


def _where(devices: int, tflops: float | None) -> str:
    if tflops is None:
        return f"on {os.cpu_count()} idle cores as fast as those of the EPYC 9005 on which it was measured"
    return (
        f"on {devices} device{'s' * (devices > 1)} that sustain{'s' * (devices == 1)} {tflops:g} TFLOP/s "
        "(--devices, --tflops); small networks sustain less"
    )
