"""``thalweg reproduce``: recipes, one after the other, with progress and a page at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.arguments import did_you_mean
from thalweg.lab import terminal
from thalweg.lab.engine import leave
from thalweg.lab.errors import UserError
from thalweg.lab.progress import Progress
from thalweg.lab.recipes import recipe as recipes
from thalweg.lab.recipes.forecast import forecast
from thalweg.lab.recipes.page import write_page
from thalweg.lab.recipes.run import reproduce as run
from thalweg.lab.search import comparison
from thalweg.lab.search.forecast import START
from thalweg.lab.signals import handled

TFLOPS = 100.0
"""What one device of a cluster sustains in bfloat16 on a large network: a third of an A100's peak."""

if TYPE_CHECKING:
    from collections.abc import Callable

    from thalweg.lab.recipes.recipe import Recipe, Scale
    from thalweg.lab.search.cells import Cell


@handled()
def reproduce(
    asked: tuple[str, ...],
    *,
    scale: str,
    jobs: int | None,
    storage: str | None,
    devices: int,
    tflops: float | None,
    dry_run: bool,
    out: Path | None,
) -> None:
    """Run the recipes that are asked for, and write the page of all that lies in the folder."""
    terminal.interruptible()
    console = terminal.console()
    if scale not in recipes.SCALES:
        near = did_you_mean(scale, recipes.SCALES)
        raise UserError(f"--scale must be {' or '.join(recipes.SCALES)}, got {scale!r}{near}")
    if asked == ("list",):
        for name in recipes.names():
            found = recipes.find(name)
            console.print(f"{name:22} {found.title} ({', '.join(found.scales)})", soft_wrap=True)
        console.print("Your own: FILE.toml, described in docs/recipes.md.", soft_wrap=True)
        return
    wanted = [recipes.find(name) for name in (recipes.names() if asked == ("all",) else dict.fromkeys(asked))]
    if asked == ("all",):
        wanted = [one for one in wanted if scale in one.scales]
    if dry_run:
        if tflops is None and scale == "paper":
            tflops = TFLOPS
        seconds = [_say_what_would_run(one, _scale(one, scale), devices, tflops, console) for one in wanted]
        console.print(f"in all about {terminal.duration(sum(seconds))} {_where(devices, tflops)}", soft_wrap=True)
        return
    root = out or Path("runs") / f"reproduce-{scale}"
    first = os.environ.get("RANK", "0") == "0"
    for one in wanted:
        _scale(one, scale)
    for one in wanted:
        if first:
            console.print(f"{one.name}: {one.title}")
        run(
            one, _text(one, asked), scale, root / one.name, command=terminal.command(),
            jobs=jobs or comparison.default_jobs(), storage=storage, say=console.print,
            watched=lambda cells, folder=root / one.name: _watched(cells, folder, console, first),  # type: ignore[misc]
        )  # fmt: skip
        if first and (page := write_page(root)) is not None:
            console.print(f"report: {page.resolve()}", soft_wrap=True)
    leave()


def _scale(one: Recipe, scale: str) -> Scale:
    if scale not in one.scales:
        raise UserError(f"the recipe {one.name} has no scale {scale!r}: it has {', '.join(one.scales)}")
    return one.scales[scale]


def _text(one: Recipe, asked: tuple[str, ...]) -> str:
    own = next((name for name in asked if name.endswith(".toml") and Path(name).stem == one.name), None)
    if own is not None:
        return Path(own).read_text("utf-8")
    return files("thalweg.lab.recipes").joinpath(f"{one.name}.toml").read_text("utf-8")


@contextmanager
def _watched(cells: list[Cell], root: Path, console: Any, first: bool) -> Iterator[Callable[[str, Any], None]]:
    if not first:
        yield lambda what, value: None
        return
    with Progress(console, cells, root) as progress:
        yield progress.hear
        progress.finish()


def _say_what_would_run(one: Recipe, scale: Scale, devices: int, tflops: float | None, console: Any) -> float:
    """Say it, and return about how many seconds it takes."""
    console.print(f"{one.name}: {one.title}")
    if scale.measure:
        took = f"about {terminal.duration(60.0 * scale.minutes)}" if scale.minutes else "an unknown time"
        console.print(f"  a measurement, {scale.measure}: {took} on two cores; download: nothing", soft_wrap=True)
        return 60.0 * scale.minutes
    total = 0.0
    for table in scale.comparisons:
        found = forecast(table, devices)
        seconds = found.whole(tflops)
        total += seconds or 0.0
        size = f"{found.parameters / 1e6:,.2f} M parameters, {found.bytes / 2**30:,.2f} GiB a device"
        steps = "steps as its data are many" if found.steps is None else f"{found.steps:,} steps"
        shared = f" ({found.devices} devices, {table.sharding})" if found.devices > 1 else ""
        work = "" if found.operations is None else f"{found.operations:.2g} operations, "
        took = "an unknown time" if seconds is None else f"about {terminal.duration(seconds)}"
        console.print(
            f"  {table.task} at batch size {table.batch_size:,}: {found.runs} runs at least of {steps}; {work}{took}; "
            f"{size}{shared} of parameters, gradients and state, activations apart; "
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
