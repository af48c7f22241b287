"""``thalweg bench step`` and ``thalweg bench memory`` as they are typed; see :mod:`thalweg.bench.commands`."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from thalweg.arguments import did_you_mean
from thalweg.lab.options import folder, names, whole

Shapes = Annotated[
    str,
    typer.Option(
        metavar="A,B,...", help="gpt2-23m, gpt2-small, gpt2-medium, resnet50, bert-base, moe-block"
    ),
]  # fmt: skip
Optimizers = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="Only these, by name (default: all but alto-inductor, which compiles for minutes).",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="Where the parameters are: cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="Of the parameters: float32 or bfloat16.")]
Threads = Annotated[
    int | None,
    typer.Option(parser=whole(1), metavar="N", help="Threads of torch (default: its own choice).", show_default=False),
]
Out = Annotated[Path, typer.Option(parser=folder, metavar="DIR", help="Folder of the results.")]
Machine = Annotated[
    str | None, typer.Option(metavar="NAME", help="What the names of the files begin with.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add ``bench`` and its two commands."""
    bench = typer.Typer(
        help="Step time and memory of optimizers, side by side with peers.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    bench.command()(step)
    bench.command()(memory)
    app.add_typer(bench, name="bench")


def step(
    shapes: Shapes = "gpt2-23m,resnet50",
    optimizers: Optimizers = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = Path("runs/bench"),
    machine: Machine = None,
    reference: Annotated[str, typer.Option(metavar="NAME", help="What the ratios are to.")] = "adamw-fused",
    rounds: Annotated[int, typer.Option(parser=whole(1), metavar="N", help="Steps of each to time.")] = 30,
    warmup: Annotated[int, typer.Option(parser=whole(0), metavar="N", help="Steps before, beside the first.")] = 5,
    seed: Annotated[int, typer.Option(parser=whole(0), metavar="N", help="Of the order within the rounds.")] = 0,
) -> None:
    """Time the steps of optimizers, interleaved, on the shapes of real models.

    Optimizers that do not run here are left out and listed with the reason.
    """
    own = {"reference": reference, "rounds": rounds, "warmup": warmup, "seed": seed}
    _run("step", shapes, optimizers, device, dtype, threads, out, machine, own)


def memory(
    shapes: Shapes = "gpt2-23m,resnet50",
    optimizers: Optimizers = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    out: Out = Path("runs/bench"),
    machine: Machine = None,
) -> None:
    """Count the optimizer state and the temporary memory of a step on the shapes of real models.

    Optimizers that do not run here are left out and listed with the reason.
    """
    _run("memory", shapes, optimizers, device, dtype, threads, out, machine, {})


def _run(
    what: str,
    shapes: str,
    optimizers: str | None,
    device: str,
    dtype: str,
    threads: int | None,
    out: Path,
    machine: str | None,
    own: dict[str, object],
) -> None:
    for option, value, allowed in (("--device", device, ("cpu", "cuda")), ("--dtype", dtype, ("float32", "bfloat16"))):
        if value not in allowed:
            raise typer.BadParameter(
                f"must be {' or '.join(allowed)}, got {value!r}{did_you_mean(value, allowed)}", param_hint=option
            )
    if machine is not None and not re.fullmatch(r"[\w.-]+", machine):
        raise typer.BadParameter(
            f"must be letters, digits, '.', '_' and '-', got {machine!r}", param_hint="--machine"
        )  # fmt: skip
    options = SimpleNamespace(
        what=what, shapes=names(shapes, "--shapes"), device=device, dtype=dtype, threads=threads, out=out,
        optimizers=None if optimizers is None else names(optimizers, "--optimizers"), machine=machine, **own,
    )  # fmt: skip
    from thalweg.bench.commands import bench
    from thalweg.lab.terminal import command, interruptible

    interruptible()
    bench(options, command())
