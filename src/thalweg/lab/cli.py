"""The lab's commands as they are typed; what they do is in :mod:`thalweg.lab.commands`, imported when one is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thalweg.lab.options import assignments, at_least, folder, names, real, share, whole

MOST = 10_000  # trials, seeds, studies
MOST_JOBS = 256
Tasks = Annotated[list[str], typer.Argument(metavar="TASK...", help="Names (see `thalweg tasks`), or module:Class.")]
Out = Annotated[
    Path | None, typer.Option(parser=folder, metavar="DIR", help="Folder of the records.", show_default=False)
]


def _config(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults of this command's options from a YAML file."""
    if path is None:
        return None
    from thalweg.lab.option_file import read

    context.default_map = {**(context.default_map or {}), **read(path, context.command.params)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", is_eager=True, callback=_config, help="YAML file with any of these options."),
]
Schedule = Annotated[str, typer.Option(help="cosine, linear, polynomial, step or constant, after a linear warm-up.")]
Warmup = Annotated[
    float,
    typer.Option(parser=share("a share of the steps"), help="Share of the steps over which the learning rate rises."),
]
Clip = Annotated[
    float | None,
    typer.Option(
        parser=real("a number greater than 0", lambda value: value > 0.0),
        help="Largest global norm of the gradient.",
        show_default=False,
    ),
]
Smoothing = Annotated[
    float, typer.Option(parser=share("a number"), help="Label smoothing, of tasks whose loss knows it.")
]
Augment = Annotated[
    str | None, typer.Option(help="flip, crop or flip-crop: of batches of images, by kornia.", show_default=False)
]
Precision = Annotated[str, typer.Option(help="no, bf16 or fp16.")]
Steps = Annotated[
    int | None,
    typer.Option(
        parser=whole(1, 10**9), metavar="N", help="Training steps, instead of the task's.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add the lab's commands."""
    for command in (compare, train, reproduce, report, tasks, optimizers):
        app.command()(command)


def compare(
    tasks: Tasks,
    batch_size: Annotated[
        list[str] | None,
        typer.Option(metavar="N...", help="Any batch sizes, instead of the task's own.", show_default=False),
    ] = None,
    optimizers: Annotated[
        str, typer.Option(metavar="A,B,...", help="Names (see `thalweg optimizers`), or dotted names of any class.")
    ] = "",
    trials: Annotated[int, typer.Option(parser=whole(1, MOST), metavar="N", help="Tuning trials of a study.")] = 8,
    studies: Annotated[
        int, typer.Option(parser=whole(1, MOST), metavar="N", help="Studies; the median of their bests is taken.")
    ] = 3,
    seeds: Annotated[
        int, typer.Option(parser=whole(1, MOST), metavar="N", help="Fresh seeds of the setting taken.")
    ] = 5,
    budget: Annotated[str, typer.Option(help="short, long or both: which of a task's training lengths.")] = "both",
    steps: Steps = None,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.05,
    clip: Clip = None,
    label_smoothing: Smoothing = 0.0,
    augment: Augment = None,
    precision: Precision = "no",
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST_JOBS), metavar="N", help="Runs at a time (default: one a core).", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Optuna's storage in which workers on many machines share the runs: a database's URL, "
            "grpc://host:port or a journal file. A shared --out needs none.",
            show_default=False,
        ),
    ] = None,
    timing: Annotated[bool, typer.Option(help="Time steps afterwards, all optimizers in turn.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and how long; run nothing.")] = False,
    config: Config = None,
    out: Out = None,
) -> None:
    """Tuned comparison of optimizers on tasks; ends in a report.

    Every optimizer is tuned with the same quasi-random trials, the setting found trains on fresh seeds. Started again,
    it continues; started elsewhere with the same --out or --storage, it joins.
    """
    from thalweg.lab import commands

    commands.compare(
        tasks=tuple(tasks),
        batch_sizes=tuple(_size(n) for text in batch_size for n in text.split(",")) if batch_size else None,
        optimizers=names(optimizers, "--optimizers"),
        trials=trials,
        studies=studies,
        seeds=seeds,
        budget=budget,
        steps=steps,
        recipe={
            "schedule": schedule,
            "warmup": warmup,
            "clip": clip,
            "label_smoothing": label_smoothing,
            "augment": augment,
            "precision": precision,
        },
        jobs=jobs,
        storage=storage,
        timing=timing,
        dry_run=dry_run,
        out=out,
    )


def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A name (see `thalweg tasks`), or module:Class.")],
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="A name, or the dotted name of a class.")] = "alto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=whole(1), metavar="N", help="Global batch size (default: the task's first).", show_default=False
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE...", help="Hyperparameters, such as lr=.02 alpha=-5.", show_default=False
        ),
    ] = None,
    steps: Steps = None,
    seed: Annotated[int, typer.Option(parser=whole(0, 2**32 - 1), help="Of initialisation and data order.")] = 0,
    schedule: Schedule = "cosine",
    warmup: Warmup = 0.05,
    lr_rule: Annotated[
        str, typer.Option(help="none, linear or sqrt: how the learning rate grows with the batch size.")
    ] = "none",
    lr_base: Annotated[
        int, typer.Option(parser=whole(1), help="The batch size for which lr is given, with --lr-rule.")
    ] = 256,
    clip: Clip = None,
    label_smoothing: Smoothing = 0.0,
    augment: Augment = None,
    precision: Precision = "no",
    evaluations: Annotated[int, typer.Option(parser=whole(1, MOST), metavar="N", help="Over the run.")] = 20,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            parser=whole(1), metavar="N", help="At most so many examples at a time on a process.", show_default=False
        ),
    ] = None,
    sharding: Annotated[str, typer.Option(help="ddp, fsdp2 or fsdp2+ep, on several processes.")] = "ddp",
    workers: Annotated[int, typer.Option(parser=whole(0, MOST_JOBS), help="Processes that load data.")] = 0,
    checkpoint_seconds: Annotated[float, typer.Option(parser=at_least(0.0), help="Between two checkpoints.")] = 30.0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the folder.")] = True,
    track: Annotated[
        str, typer.Option(metavar="A,B,...", help="Of tensorboard, wandb and mlflow, those installed; or none.")
    ] = "tensorboard",
    instruments: Annotated[
        int | None,
        typer.Option(
            parser=whole(1),
            metavar="N",
            help="Every N steps, record what E and the trust ratio do, gradient noise and sharpness.",
            show_default=False,
        ),
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep the weights at the end, as safetensors; overwrites.", show_default=False
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from these weights, as --save-model keeps them.", show_default=False),
    ] = None,
    config: Config = None,
    out: Out = None,
) -> None:
    """One run, also under torchrun and accelerate launch; the same command goes on where it stopped."""
    from thalweg.lab import commands

    commands.train(
        task=task,
        optimizer=optimizer,
        batch_size=batch_size,
        given=assignments(settings or [], "--set"),
        steps=steps,
        fields={
            "seed": seed,
            "schedule": schedule,
            "warmup": warmup,
            "lr_rule": lr_rule,
            "lr_base": lr_base,
            "clip": clip,
            "label_smoothing": label_smoothing,
            "augment": augment,
            "precision": precision,
            "evaluations": evaluations,
        },
        micro_batch=micro_batch,
        sharding=sharding,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
        track=names(track, "--track"),
        instruments=instruments,
        save_model=save_model,
        init_from=init_from,
        out=out,
    )


def reproduce(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE...", help="`list`, names from there, `all`, or your own FILE.toml.")
    ],
    scale: Annotated[str, typer.Option(help="lab (two cores, minutes to an hour) or paper (a cluster).")] = "lab",
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST_JOBS), metavar="N", help="Runs at a time (default: one a core).", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="As of `thalweg compare`.", show_default=False)
    ] = None,
    devices: Annotated[
        int, typer.Option(parser=whole(1), metavar="N", help="How many share a run, for --dry-run.")
    ] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            parser=at_least(1e-3),
            metavar="X",
            help="What a device sustains, for --dry-run (default: 100 at paper scale, this CPU at lab scale).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be downloaded, how long and how large it is; run nothing.")
    ] = False,
    out: Out = None,
) -> None:
    """The slides' experiments: run one, some or all, and write a page with the printed numbers beside.

    Started again, it goes on; started elsewhere with the same --out or --storage, it joins; under torchrun all
    processes work on one run at a time.
    """
    from thalweg.lab import reproducing

    reproducing.reproduce(
        tuple(recipes),
        scale=scale,
        jobs=jobs,
        storage=storage,
        devices=devices,
        tflops=tflops,
        dry_run=dry_run,
        out=out,
    )


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a comparison, or of recipes.")],
) -> None:
    """Write the report again, from stored runs."""
    from thalweg.lab import commands

    commands.report(folder)


def tasks() -> None:
    """What can be trained, a line each."""
    from thalweg.lab import commands

    commands.list_tasks()


def optimizers() -> None:
    """What can be compared, a line each."""
    from thalweg.lab import commands

    commands.list_optimizers()


def _size(text: str) -> int:
    try:
        return whole(1, 2**31)(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint="--batch-size") from None
