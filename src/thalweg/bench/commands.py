"""``thalweg bench step`` and ``thalweg bench memory``: measure, tabulate, write the record and its picture."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from thalweg.bench import environment
from thalweg.bench.contenders import CONTENDERS, contender
from thalweg.bench.memory import Ledger
from thalweg.bench.picture import draw
from thalweg.bench.shapes import model
from thalweg.bench.step import Rounds, Settings
from thalweg.bench.tables import memory_table, step_table
from thalweg.lab import terminal
from thalweg.lab.errors import UserError
from thalweg.lab.records import write_json

if TYPE_CHECKING:
    from types import SimpleNamespace

FORMAT = 1
Advance: TypeAlias = Callable[[str], None]


def bench(options: SimpleNamespace, command: str) -> None:
    """Measure what is asked for, and write it; if interrupted, what is complete.

    Raises:
        UserError: an argument that cannot be met.
    """
    models = [model(name) for name in dict.fromkeys(options.shapes)]
    names = options.optimizers or [name for name, one in CONTENDERS.items() if not one.patience]
    contenders = {name: contender(name) for name in names}
    arguments = {
        "shapes": [one.name for one in models],
        "optimizers": list(contenders),
        "device": options.device,
        "dtype": options.dtype,
    }
    device, dtype = environment.device(options.device), getattr(torch, options.dtype)
    calls = len(contenders)
    if options.what == "step":
        contenders |= {options.reference: contender(options.reference, "--reference")}
        calls = len(contenders) + options.warmup + options.rounds
        own = {name: getattr(options, name) for name in ("rounds", "warmup", "reference", "seed")}
        settings = Settings(**own, device=device, dtype=dtype)
        arguments |= own
    _make(options.out)
    console = terminal.console()
    if not console.is_terminal:
        console.width = 160
    with _threads(options.threads), _progress(console, calls * len(models)) as advance:
        record = {
            "format": FORMAT,
            "kind": options.what,
            "command": command,
            "interrupted": False,
            "environment": environment.environment(),
            "arguments": arguments,
            "models": [],
        }
        measurements: Iterable[Rounds | Ledger]
        if options.what == "step":
            measurements = (Rounds(one, list(contenders.values()), settings, advance) for one in models)
        else:
            measurements = (Ledger(one, list(contenders.values()), device, dtype, advance) for one in models)
        _carry_out(measurements, record, options.out / "-".join(filter(None, (options.machine, options.what))), console)


def _carry_out(measurements: Iterable[Rounds | Ledger], record: dict[str, Any], stem: Path, console: Any) -> None:
    """Measure one after the other; tabulate and write what is complete, however this ends."""
    table = step_table if record["kind"] == "step" else memory_table
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        for one in measurements:
            try:
                one.run()
            finally:
                if (found := one.record()) is not None:
                    record["models"].append(found)
                    console.print(table(found, record["arguments"], console.width))
    except BaseException:
        record["interrupted"] = True
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if record["models"]:
            write_json(Path(f"{stem}.json"), record)
            draw(record, Path(f"{stem}.png"))
            console.print(f"written: {stem}.json and {stem}.png", soft_wrap=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"argument --out: cannot write to {folder} ({error.strerror}): choose another folder") from None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads within an operation; None leaves torch's choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(console: Any, total: int) -> Iterator[Advance]:
    """A bar that is redrawn only when it advances, between steps: a thread that redraws it would be timed as well."""
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
