"""What the commands of ``thalweg bench`` share: whom they measure, how far they are, the record and its picture."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from thalweg.commands import terminal
from thalweg.records.files import write_json, writing

if TYPE_CHECKING:
    from thalweg.bench.candidates import Candidate
    from thalweg.bench.shapes import Model

FORMAT = 1
Advance: TypeAlias = Callable[[str], None]


class Measurement(Protocol):
    """That of one model."""

    def run(self) -> None:
        """Measure everything."""

    def record(self) -> dict[str, Any] | None:
        """What is complete; None if nothing is."""


def named(names: Iterable[str], option: str = "--optimizers") -> dict[str, Candidate]:
    """The candidates of these names.

    Raises:
        UserError: there is no such name.
    """
    from thalweg.bench.candidates import candidate

    return {name: candidate(name, option) for name in names}


def chosen(
    shapes: Iterable[str], optimizers: Iterable[str]
) -> tuple[list[Model], dict[str, Candidate], dict[str, Any]]:
    """The models and the candidates of these names, and what a record says of them.

    Raises:
        UserError: there is no such name.
    """
    from thalweg.bench.shapes import model

    terminal.interruptible()
    models, candidates = [model(name) for name in dict.fromkeys(shapes)], named(optimizers)
    return models, candidates, {"shapes": [one.name for one in models], "optimizers": list(candidates)}


def measure(
    kind: str,
    arguments: dict[str, Any],
    measurements: Callable[[Advance], Iterable[Measurement]],
    *,
    calls: int,
    threads: int | None,
    out: Path,
    machine: str | None,
) -> None:
    """Measure one after the other, and write it; if interrupted, what is complete.

    Args:
        kind: of the record.
        arguments: of the command, for the record.
        measurements: made one by one, given what they call to say how far they are.
        calls: how often they call it.
        threads: of torch (None: its choice).
        out: the folder of the record.
        machine: what its name begins with.
    """
    import torch

    from thalweg.bench import environment

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    console = terminal.console()
    if not console.is_terminal:
        console.width = 160
    if threads is not None:
        torch.set_num_threads(threads)
    with _progress(console, calls) as advance:
        record = {
            "format": FORMAT,
            "kind": kind,
            "command": terminal.command(),
            "interrupted": False,
            "environment": environment.environment(),
            "arguments": arguments,
            "models": [],
        }
        stem = out / "-".join(filter(None, (machine, kind)))
        _carry_out(measurements(advance), record, stem, console)


def _carry_out(measurements: Iterable[Measurement], record: dict[str, Any], stem: Path, console: Any) -> None:
    """Measure one after the other; tabulate and write what is complete, however this ends."""
    from thalweg.bench.picture import draw
    from thalweg.commands.bench_tables import TABLES

    table = TABLES[record["kind"]]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        for one in measurements:
            try:
                one.run()
            finally:
                if (found := one.record()) is not None:
                    record["models"].append(found)
                    console.print(table(found, record["arguments"]))
    except BaseException:
        record["interrupted"] = True
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if record["models"]:
            write_json(Path(f"{stem}.json"), record)
            draw(record, Path(f"{stem}.png"))
            console.print(f"written: {stem}.json and {stem}.png", soft_wrap=True)


@contextmanager
def _progress(console: Any, total: int) -> Iterator[Advance]:
    """A bar that is redrawn only when it advances, between steps: a thread that redraws it would be timed as well."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
    with terminal.suspendable(console), bar:
        task = bar.add_task("", total=total)

        def advance(doing: str) -> None:
            before = bar.tasks[task].percentage
            bar.update(task, advance=1, description=doing, refresh=console.is_terminal)
            after = bar.tasks[task].percentage
            if not console.is_terminal and int(before / 10) < int(after / 10) < 10:
                console.print(f"{after:.0f} %: {doing}")

        yield advance
