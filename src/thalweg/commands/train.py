"""``thalweg train``: one run, on one process or many."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from thalweg.arguments import did_you_mean
from thalweg.commands import terminal
from thalweg.commands.options import (
    LARGEST,
    MOST_JOBS,
    assignments,
    at_least,
    file,
    flag,
    folder,
    mesh,
    names,
    several,
    switch,
    whole,
)
from thalweg.lab import slurm
from thalweg.lab.signals import handled
from thalweg.records.errors import UserError
from thalweg.records.regimen import REGIMEN, Regimen, Reshard, Sharding

if TYPE_CHECKING:
    from thalweg.lab.contenders import Contender
    from thalweg.lab.engine import Training


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Train(Regimen):
    """The options of ``thalweg train``."""

    optimizer: str = "alto"
    """A name (see `thalweg optimizers`), or the dotted name of a class."""

    batch_size: Annotated[int | None, whole(1, LARGEST)] = None
    """Global batch size (default: the task's first)."""

    settings: Annotated[tuple[str, ...], Parameter(name=["--set", "--settings"]), several] = ()
    """Hyperparameters as NAME=VALUE, such as lr=.02 alpha=-5."""

    steps: Annotated[int | None, whole(1, 10**9)] = None
    """Training steps (default: the task's)."""

    seed: Annotated[int, whole(0, 2**32 - 1)] = 0
    """Seed of the initialisation and the data order."""

    micro_batch: Annotated[int | None, whole(1)] = None
    """Maximum number of examples per pass on each process; gradients are accumulated."""

    sharding: Sharding | None = None
    """How several processes share the model: ddp, fsdp2 or fsdp2+ep (default: fsdp2 with --mesh, else ddp)."""

    mesh: Annotated[tuple[str, ...], several] = ()
    """Processes along data (copies), shard, tensor and expert, such as data=8,shard=8 (default: all along the axis of
    --sharding)."""

    reshard: Reshard = "each"
    """Make shards after each micro-batch, or after the last: fewer collectives, and each process holds all parameters
    and gradients in between."""

    activation_checkpointing: Annotated[bool, flag] = False
    """Keep only the inputs of each block of the model for backward, and compute the rest again."""

    compile: Annotated[bool, flag] = False
    """Compile the model with torch.compile, a block at a time."""

    workers: Annotated[int, whole(0, MOST_JOBS)] = 0
    """Data-loading processes."""

    streaming: Annotated[bool, flag] = False
    """Read the training data as they come, file after file, instead of preparing all of them first."""

    checkpoint_seconds: Annotated[float, at_least(0.0)] = 30.0
    """Seconds between checkpoints."""

    resume: Annotated[bool, switch] = True
    """Resume from the checkpoint in the output folder."""

    track: Annotated[tuple[str, ...], names("--track")] = ("tensorboard",)
    """Comma-separated trackers: tensorboard, wandb, mlflow; or none."""

    instruments: Annotated[int | None, whole(1)] = None
    """Every N steps, record what E and the trust ratio do, the gradient noise and the sharpness."""

    save_model: Annotated[Path | None, file] = None
    """Save the final weights to this file, as safetensors; an existing file is overwritten."""

    init_from: Annotated[Path | None, file] = None
    """Start from the weights in this file, as written by --save-model."""

    config: Path | None = None
    """YAML file with values for these options."""

    out: Annotated[Path | None, folder] = None
    """Output folder (default: runs/train/TASK/OPTIMIZER-HASH)."""


@handled()
def train(task: str, *, options: Train | None = None) -> None:
    """Train one run, on one process or many (torchrun, accelerate launch, srun); the same command resumes it.

    Args:
        task: A name (see `thalweg tasks`), or module:Class.
        options: how to train.
    """
    options = options or Train()
    slurm.adopt()
    given = assignments(options.settings, "--set")
    from thalweg.lab import alone, contenders, tasks
    from thalweg.lab.engine import Execution, RunSpec, leave_process_group, reader, variables
    from thalweg.lab.engine import train as run_one
    from thalweg.lab.instruments import Panel, overhead
    from thalweg.lab.ranks import agreement
    from thalweg.lab.saved import weights
    from thalweg.lab.search.cells import slug

    terminal.interruptible()
    own = tasks.find(task)
    size = options.batch_size or own.budgets[0].batch_size
    budget = tasks.budget_at(own.budgets, size, "short")
    chosen = contenders.contender(options.optimizer)
    regimen = {name: getattr(options, name) for name in REGIMEN}
    if chosen.schedule is not None and options.schedule == "cosine":
        regimen["schedule"] = chosen.schedule
    variables.check(options.precision)
    wanted = RunSpec(
        task=task,
        batch_size=size,
        steps=options.steps or (budget or own.budgets[0]).steps,
        optimizer=options.optimizer,
        settings=_settings(chosen, size, given),
        seed=options.seed,
        test=True,
        init="" if options.init_from is None else weights.hash_of(options.init_from),
        streaming=options.streaming,
        **regimen,
    )
    every = options.instruments
    if every is not None and every > wanted.steps:
        raise UserError(f"--instruments must be an integer from 1 to {wanted.steps} (the steps), got {every}")
    console = terminal.console()
    panel = None if every is None else Panel(every, lambda line: console.print(line, soft_wrap=True))
    execution = Execution(
        options.micro_batch, options.sharding or ("fsdp2" if options.mesh else "ddp"), options.workers,
        options.checkpoint_seconds, _trackers(options.track), panel, options.save_model, options.init_from,
        mesh(options.mesh) if options.mesh else None, options.reshard,
        options.activation_checkpointing, options.compile,
    )  # fmt: skip
    if options.streaming:
        reader.check(execution)
    spec = agreement.in_turn(wanted.stamped)
    folder = options.out or Path("runs") / "train" / slug(task) / f"{slug(options.optimizer)}-{spec.hash}"
    rank = int(os.environ.get("RANK", "0"))
    if execution.sharding != "ddp" and os.environ.get("WORLD_SIZE", "1") == "1":
        console.print(f"note: on one process --sharding {execution.sharding} has nothing to share; see torchrun")
    with ExitStack() as stack:
        with agreement.raise_on_all():
            alone.check_room_for(options.save_model, options.init_from)
            if rank == 0:
                alone.make_room(folder, spec, options.resume)
                reserved = stack.enter_context(alone.reserved(spec, folder, execution, options.resume))
            elif not options.resume:
                raise UserError("--no-resume is for one process: remove the folder, or choose another")

        def on_event(training: Training, event: str) -> None:
            if rank != 0:
                return
            reserved.check()
            if event == "evaluation":
                line = training.history[-1]
                console.print(
                    f"step {line['step']}/{spec.steps}  loss {line['loss']:.4g}  validation {line['validation']:.4g}  "
                    f"{line['seconds']:.1f} s"
                )

        result = run_one(
            spec, folder, execution=execution, on_event=on_event, say=lambda line: console.print(line, soft_wrap=True)
        )
        if rank == 0:
            reserved.result = result
    if rank == 0:
        if panel is not None:
            console.print(overhead(folder, result), soft_wrap=True)
        said = ", ".join(f"{key} {result[key]:.6g}" for key in ("validation", "test") if result.get(key) is not None)
        console.print(f"{result['status']}: {said or result['reason']}")
        console.print(f"records: {folder.resolve()}", soft_wrap=True)
        if options.save_model is not None:
            kept = result["status"] == "finished"
            console.print(
                f"model: {options.save_model.resolve() if kept else 'none, as the run failed'}", soft_wrap=True
            )
    leave_process_group()
    if result["status"] == "failed":
        raise SystemExit(1)


def _settings(chosen: Contender, batch_size: int, given: dict[str, float]) -> dict[str, float]:
    """The defaults with what is given; what the optimizer does not take is refused here, before there is a run."""
    from thalweg.lab.contenders import defaults

    known = defaults(chosen, batch_size)
    if unknown := sorted(set(given) - set(known)):
        near = "".join(did_you_mean(name, known) for name in unknown)
        raise UserError(f"--set: {chosen.name} has no {', '.join(unknown)}; it has {', '.join(known)}{near}")
    if given and _refusal(chosen, known) is None and (says := _refusal(chosen, known | given)) is not None:
        raise UserError(f"--set: {says}")
    return known | given


def _refusal(chosen: Contender, settings: dict[str, float]) -> str | None:
    """What the optimizer says against settings, built for a small layer; None: nothing."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns
        try:
            chosen.build(torch.nn.Linear(4, 4), settings)
        except ValueError as error:
            return str(error)
    return None


def _trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are installed; one that was asked for by name and is not is an error, TensorBoard is left out."""
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
