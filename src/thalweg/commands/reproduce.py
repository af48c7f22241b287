"""``thalweg reproduce``: recipes, one after the other, with progress and a page at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from thalweg.commands import dry_run, terminal
from thalweg.commands.options import MOST_JOBS, at_least, flag, folder, whole
from thalweg.lab import slurm
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError
from thalweg.studies import recipe as kept

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

    devices: Annotated[int | None, whole(1)] = None
    """Devices per run, for --dry-run (default: those that the recipe is meant for)."""

    tflops: Annotated[float | None, at_least(1e-3)] = None
    """TFLOP/s that a device sustains, for the estimate of --dry-run (default: 100 at paper scale, this CPU at lab)."""

    memory: str | None = None
    """Memory of a device, such as 80GB: what does not fit is refused (default: what the accelerator that is there has,
    and with --dry-run at paper scale 80GB)."""

    dry_run: Annotated[bool, flag] = False
    """Print what would be downloaded, how long it takes, how it is carried out and whether it fits, and run nothing."""

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
    from thalweg.lab.ranks import agreement
    from thalweg.lab.search import comparison, together
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
        dry = dry_run.DryRun(console, scale, options.devices, options.tflops, options.memory)
        for one, own in zip(wanted, scales, strict=True):
            with _left_out(everything, console):
                dry.say(one, own)
        dry.end()
        return
    if any(table.sharding != "ddp" for own in scales for table in own.comparisons):
        slurm.adopt()  # of srun: each run is one of all tasks, as of a launcher
    ready = []
    for one, own in zip(wanted, scales, strict=True):
        with _left_out(everything, console), agreement.raise_on_all() if together.launched() else nullcontext():
            dry_run.check(own, options.memory)
            ready.append(one)
    root = options.out or Path("runs") / f"reproduce-{scale}"
    first = os.environ.get("RANK", "0") == "0"
    for one in ready:
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
