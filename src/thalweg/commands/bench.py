"""``thalweg bench step`` and ``thalweg bench memory``: measure, tabulate, write the record and its picture."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from thalweg.commands import terminal
from thalweg.commands.options import folder, names, whole
from thalweg.records.errors import UserError
from thalweg.records.files import write_json, writing

if TYPE_CHECKING:
    from thalweg.bench.memory import MemoryBenchmark
    from thalweg.bench.step import StepBenchmark

FORMAT = 1
Advance: TypeAlias = Callable[[str], None]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of both."""

    shapes: Annotated[tuple[str, ...], names("--shapes")] = ("gpt2-23m", "resnet50")
    """Comma-separated: gpt2-23m, gpt2-small, gpt2-medium, resnet50, bert-base, moe-block."""

    optimizers: Annotated[tuple[str, ...], names("--optimizers")] = ()
    """Comma-separated names (default: all but alto-inductor, which takes minutes to compile)."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the parameters: cpu or cuda."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the parameters: float32 or bfloat16."""

    threads: Annotated[int | None, whole(1)] = None
    """Number of torch threads (default: torch's choice)."""

    out: Annotated[Path, folder] = Path("runs/bench")
    """Output folder."""

    machine: str | None = None
    """Prefix of the output files' names."""

    def __post_init__(self) -> None:
        if self.machine is not None and not re.fullmatch(r"[\w.-]+", self.machine):
            raise UserError(f"--machine must be letters, digits, '.', '_' and '-', got {self.machine!r}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Step(Bench):
    """Those of ``thalweg bench step``."""

    reference: str = "adamw-fused"
    """Optimizer that the ratios are relative to."""

    rounds: Annotated[int, whole(1)] = 30
    """Timed steps of each optimizer."""

    warmup: Annotated[int, whole(0)] = 5
    """Untimed steps of each, after its first."""

    seed: Annotated[int, whole(0)] = 0
    """Seed of the order within the rounds."""


def step(*, options: Step | None = None) -> None:
    """Time the steps of optimizers, interleaved, on the shapes of real models.

    Optimizers that cannot run here are left out and listed with the reason.
    """
    _bench("step", options or Step())


def memory(*, options: Bench | None = None) -> None:
    """Count the optimizer state and the temporary memory of a step on the shapes of real models.

    Optimizers that cannot run here are left out and listed with the reason.
    """
    _bench("memory", options or Bench())


def _bench(what: str, options: Bench) -> None:
    """Measure what is asked for, and write it; if interrupted, what is complete.

    Raises:
        UserError: an argument that cannot be met.
    """
    import torch

    from thalweg.bench import environment
    from thalweg.bench.candidates import CANDIDATES, candidate
    from thalweg.bench.memory import MemoryBenchmark
    from thalweg.bench.shapes import model
    from thalweg.bench.step import StepBenchmark, TimingSettings

    terminal.interruptible()
    models = [model(name) for name in dict.fromkeys(options.shapes)]
    names = options.optimizers or [name for name, one in CANDIDATES.items() if not one.patience]
    candidates = {name: candidate(name) for name in names}
    arguments = {
        "shapes": [one.name for one in models],
        "optimizers": list(candidates),
        "device": options.device,
        "dtype": options.dtype,
    }
    device, dtype = environment.device(options.device), getattr(torch, options.dtype)
    calls = len(candidates)
    if isinstance(options, Step):
        candidates |= {options.reference: candidate(options.reference, "--reference")}
        calls = len(candidates) + options.warmup + options.rounds
        own = {name: getattr(options, name) for name in ("rounds", "warmup", "reference", "seed")}
        settings = TimingSettings(**own, device=device, dtype=dtype)
        arguments |= own
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    console = terminal.console()
    if not console.is_terminal:
        console.width = 160
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with _progress(console, calls * len(models)) as advance:
        record = {
            "format": FORMAT,
            "kind": what,
            "command": terminal.command(),
            "interrupted": False,
            "environment": environment.environment(),
            "arguments": arguments,
            "models": [],
        }
        measurements: Iterable[StepBenchmark | MemoryBenchmark]
        if isinstance(options, Step):
            measurements = (StepBenchmark(one, list(candidates.values()), settings, advance) for one in models)
        else:
            measurements = (MemoryBenchmark(one, list(candidates.values()), device, dtype, advance) for one in models)
        _carry_out(measurements, record, options.out / "-".join(filter(None, (options.machine, what))), console)


def _carry_out(
    measurements: Iterable[StepBenchmark | MemoryBenchmark], record: dict[str, Any], stem: Path, console: Any
) -> None:
    """Measure one after the other; tabulate and write what is complete, however this ends."""
    from thalweg.bench.picture import draw
    from thalweg.commands.bench_tables import memory_table, step_table

    table = step_table if record["kind"] == "step" else memory_table
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
