"""How long a checkpoint stops training, and the memory it takes: all gathered into one file, and as the lab writes it.

    torchrun --nproc-per-node 2 benchmarks/checkpoints.py benchmarks/results/NAME.json

trains 50 million parameters in shards. In each round both ways save the same state, in an order that is drawn anew, and
then both load it. What the first way did was the lab's until it used ``torch.distributed.checkpoint``.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from thalweg.bench import environment
from thalweg.files import write_bytes
from thalweg.lab.engine import Execution, RunSpec, Training, leave_process_group
from thalweg.lab.ranks import agreement
from thalweg.lab.tasks import Budget, Metric, Rows, Splits, Task

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, WIDTH, LAYERS = 3, 1024, 48
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SETTINGS = {"lr": 1e-4, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99}


class Wide(Task):
    """50 million parameters in 48 blocks."""

    title = "nothing in particular"
    metric = Metric("squared error", "min", log=True, low=0.0)
    budgets = (Budget(32, 1000),)
    example_cost = 1.0

    def splits(self) -> Splits:
        """Random numbers."""
        x = torch.randn(96, WIDTH, generator=torch.Generator().manual_seed(0))
        return Splits(*(Rows(part, part.roll(1, 1)) for part in x.split(32)))

    def model(self) -> nn.Module:
        """As said above."""
        return Stack()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean square."""
        return F.mse_loss(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """That of each example."""
        return (output - target).square().mean(1)


class Stack(nn.Module):
    """Residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """All blocks, one after the other."""
        for block in self.blocks:
            x = x + block(x).tanh() / LAYERS
        return x


def resident(name: str) -> int:
    """Bytes of ``VmRSS`` or ``VmHWM``, the most since :func:`measured` began."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measured(work: Callable[[], Callable[[], Any]]) -> dict[str, float]:
    """Of ``work`` and of what it returns, which waits for the rest: seconds, and the bytes taken meanwhile."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be taken again, unseen
    torch.distributed.barrier()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    rest = work()
    paused = time.perf_counter() - began
    rest()
    seconds, taken = time.perf_counter() - began, resident("VmHWM") - before
    torch.distributed.barrier()
    return {"paused": paused, "seconds": seconds, "bytes": taken}


def gathered_save(training: Training, path: Path) -> Callable[[], None]:
    """Gather all on the first process, which writes a file."""
    model, optimizer = get_state_dict(training.bare(), training.inner(), options=WHOLE)
    if training.accelerator.is_main_process:
        buffer = io.BytesIO()
        torch.save({"model": model, "optimizer": optimizer}, buffer)
        write_bytes(path, buffer.getvalue())
    torch.distributed.barrier()  # as the next step is one
    return lambda: None


def gathered_load(training: Training, path: Path) -> Callable[[], None]:
    """Read all on each process, which keeps its shards."""
    state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    set_state_dict(
        training.bare(),
        training.inner(),
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=WHOLE,
    )
    return lambda: None


def own_save(training: Training) -> Callable[[], None]:
    """As the lab saves; what is returned waits until it is on disk."""
    training.save()
    return training.await_save


def own_load(training: Training) -> Callable[[], None]:
    """As the lab resumes."""
    assert training.restore(print) == training.step
    return lambda: None


def held(training: Training) -> int:
    """Bytes of this process's parameters and state."""
    state = [x for one in training.inner().state.values() for x in one.values()]
    local = (x.to_local() if isinstance(x, DTensor) else x for x in [*training.bare().parameters(), *state])
    return sum(x.numel() * x.element_size() for x in local)


def main(path: Path, folder: Path) -> None:
    """Measure, and write the record to ``path``; checkpoints go to ``folder``."""
    spec = RunSpec("checkpoints:Wide", 32, 1000, "adamw", SETTINGS)
    training = Training(spec, folder, Execution(sharding="fsdp2"))
    whole = folder / "whole.pt"
    ways = {
        "gathered": (
            lambda: gathered_save(training, whole),
            lambda: gathered_load(training, whole),
        ),
        "own": (lambda: own_save(training), lambda: own_load(training)),
    }
    batches = training.batches()
    rounds: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        order = random.Random(number).sample(sorted(ways), 2)
        found: dict[str, Any] = {}
        training.take_step(batches)
        for name in order:
            found[name] = {"save": measured(ways[name][0])}
        for name in order:
            found[name]["load"] = measured(ways[name][1])
        every = agreement.gather((found, held(training)))
        rounds.append({"order": order, "ranks": [one for one, _ in every]})
        if training.accelerator.is_main_process:
            print(json.dumps(rounds[-1]), flush=True)
    if training.accelerator.is_main_process:
        local = every[0][1]
        summary = {
            name: {
                f"{what}_{key}": statistics.median(max(r[name][what][key] for r in one["ranks"]) for one in rounds)
                for what in ("save", "load")
                for key in ("paused", "seconds")
            }
            | {
                f"{what}_peak_of_local_state": max(r[name][what]["bytes"] for one in rounds for r in one["ranks"])
                / local
                for what in ("save", "load")
            }
            for name in ways
        }
        pause = [one["save_paused"] for one in (summary["own"], summary["gathered"])]
        record = {
            "environment": environment.environment(),
            "parameters": sum(p.numel() for p in training.bare().parameters()),
            "ranks": 2,
            "bytes_of_local_state": local,
            "summary": summary,
            "ratio_of_medians_of_pauses": pause[0] / pause[1],
            "rounds": rounds,
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({key: record[key] for key in ("summary", "ratio_of_medians_of_pauses")}, indent=1))


if __name__ == "__main__":
    out = Path(sys.argv[1])
    first = agreement.processes().is_main_process
    with tempfile.TemporaryDirectory(dir=out.parent if first else None) as name:
        main(out, Path(agreement.broadcast(0, name)))
        torch.distributed.barrier()
    leave_process_group()
