"""``thalweg bench step``, ``memory`` and ``sharded``: their options, and what they measure."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from thalweg.commands.benchmarking import chosen, measure, named
from thalweg.commands.options import folder, names, whole, wholes
from thalweg.records.errors import UserError

MOST_RANKS = 2**20
RANKS = {"fake": (64, 384, 1024), "gloo": (2,)}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of all."""

    shapes: Annotated[tuple[str, ...], names("--shapes")] = ("gpt2-23m", "resnet50")
    """Comma-separated: gpt2-23m, gpt2-small, gpt2-medium, resnet50, bert-base, moe-block, moe-narrow."""

    optimizers: Annotated[tuple[str, ...], names("--optimizers")] = ()
    """Comma-separated names (default: all but alto-inductor, muon and e-muon, which take long)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the parameters: float32 or bfloat16."""

    out: Annotated[Path, folder] = Path("runs/bench")
    """Output folder."""

    machine: str | None = None
    """Prefix of the output files' names."""

    def __post_init__(self) -> None:
        if self.machine is not None and not re.fullmatch(r"[\w.-]+", self.machine):
            raise UserError(f"--machine must be letters, digits, '.', '_' and '-', got {self.machine!r}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Memory(Bench):
    """Those of ``thalweg bench memory``."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the parameters: cpu or cuda."""

    threads: Annotated[int | None, whole(1)] = None
    """Number of torch threads (default: torch's choice)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Those of what is measured in rounds."""

    rounds: Annotated[int, whole(1)] = 30
    """Timed steps of each optimizer."""

    warmup: Annotated[int, whole(0)] = 5
    """Untimed steps of each, after its first."""

    seed: Annotated[int, whole(0)] = 0
    """Seed of the order within the rounds."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Step(Rounds, Memory):
    """Those of ``thalweg bench step``."""

    reference: str = "adamw-fused"
    """Optimizer that the ratios are relative to."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Sharded(Rounds, Bench):
    """Those of ``thalweg bench sharded``."""

    shapes: Annotated[tuple[str, ...], names("--shapes")] = ("gpt2-small", "moe-narrow")
    """Comma-separated: gpt2-23m, gpt2-small, gpt2-medium, resnet50, bert-base, moe-block, moe-narrow."""

    optimizers: Annotated[tuple[str, ...], names("--optimizers")] = ()
    """Comma-separated names (default: adamw-foreach, adamw-fused, alto, lamb, e-adamw, muon, e-muon; with gloo
    adamw-fused, alto, lamb, e-adamw)."""

    ranks: Annotated[tuple[int, ...], wholes("--ranks", 2, MOST_RANKS)] = ()
    """Comma-separated numbers of ranks that parameters are sharded over (default: 64,384,1024; with gloo 2)."""

    backend: Literal["fake", "gloo"] = "fake"
    """fake: rank 0 alone, with collectives that move nothing. gloo: a process for each rank."""

    reference: str | None = None
    """Optimizer that the ratios are relative to (default: adamw-foreach; with gloo adamw-fused)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        cores = os.cpu_count() or 1
        if self.backend == "gloo" and any(n > cores for n in self.ranks):
            raise UserError(f"--ranks must be at most {cores} with gloo, a core for each, got {max(self.ranks)}")


def step(*, options: Step | None = None) -> None:
    """Time the steps of optimizers, interleaved, on the shapes of real models.

    Optimizers that cannot run here are left out and listed with the reason.
    """
    import torch

    from thalweg.bench import environment
    from thalweg.bench.step import StepBenchmark, TimingSettings

    options = options or Step()
    models, candidates, arguments = chosen(options.shapes, options.optimizers or _unhurried())
    candidates |= named([options.reference], "--reference")
    timing = {name: getattr(options, name) for name in ("rounds", "warmup", "reference", "seed")}
    device, dtype = environment.device(options.device), getattr(torch, options.dtype)
    settings = TimingSettings(**timing, device=device, dtype=dtype)
    some = list(candidates.values())
    measure(
        "step",
        arguments | timing | {"dtype": options.dtype, "device": options.device},
        lambda advance: (StepBenchmark(one, some, settings, advance) for one in models),
        calls=len(models) * (len(candidates) + options.warmup + options.rounds),
        threads=options.threads,
        out=options.out,
        machine=options.machine,
    )


def memory(*, options: Memory | None = None) -> None:
    """Count the optimizer state and the temporary memory of a step on the shapes of real models.

    Optimizers that cannot run here are left out and listed with the reason.
    """
    import torch

    from thalweg.bench import environment
    from thalweg.bench.memory import MemoryBenchmark

    options = options or Memory()
    models, candidates, arguments = chosen(options.shapes, options.optimizers or _unhurried())
    device, dtype = environment.device(options.device), getattr(torch, options.dtype)
    some = list(candidates.values())
    measure(
        "memory",
        arguments | {"dtype": options.dtype, "device": options.device},
        lambda advance: (MemoryBenchmark(one, some, device, dtype, advance) for one in models),
        calls=len(models) * len(candidates),
        threads=options.threads,
        out=options.out,
        machine=options.machine,
    )


def sharded(*, options: Sharded | None = None) -> None:
    """Time the steps of optimizers, interleaved, on shards of the shapes of real models, and count their collectives.

    Times are CPU time of the rank that holds most, with one thread. Optimizers that cannot run here are left out and
    listed with the reason.
    """
    from thalweg.bench.sharded import DEFAULT, ShardedBenchmark, WorldSettings

    options = options or Sharded()
    usual = DEFAULT[options.backend]
    models, candidates, arguments = chosen(options.shapes, options.optimizers or usual)
    reference = options.reference or usual[0]
    candidates |= named([reference], "--reference")
    ranks = options.ranks or RANKS[options.backend]
    timing = {name: getattr(options, name) for name in ("backend", "rounds", "warmup", "seed")}
    timing["reference"] = reference
    worlds = [
        ShardedBenchmark(one, list(candidates.values()), WorldSettings(ranks=n, dtype=options.dtype, **timing))
        for one in models
        for n in ranks
    ]
    for world in worlds:
        world.check_memory()
    measure(
        "sharded",
        arguments | timing | {"dtype": options.dtype, "ranks": list(ranks)},
        lambda advance: (world.telling(advance) for world in worlds),
        calls=len(worlds) * (2 * len(candidates) + options.warmup + options.rounds),
        threads=1,
        out=options.out,
        machine=options.machine,
    )


def _unhurried() -> list[str]:
    """Who takes part where nobody is named."""
    from thalweg.bench.candidates import CANDIDATES

    return [name for name, one in CANDIDATES.items() if not one.patience]
