"""One rank of a world of ranks, in a process of its own, as a process has one process group.

In a simulated world rank 0 is alone: the collectives of torch's fake process group return at once and move nothing. It
has the largest shard of each parameter. Every parameter is cut along its first axis, as FSDP2 does, and never whole.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, zeros
from torch.nn import Parameter

from thalweg.bench.candidates import CANDIDATES, LeftOutError, Weights, fresh_gradients, make_gradients
from thalweg.bench.rounds import Rounds, without_collections
from thalweg.bench.shapes import model
from thalweg.bench.wire import Collectives, closed_form
from thalweg.records.errors import UserError
from thalweg.torch_private import fake_store

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from thalweg.bench.candidates import Candidate
    from thalweg.bench.shapes import Model, Shape

MARK = "thalweg: "  # before what is told to the parent, so that it is not taken for what others print
PATIENCE = timedelta(minutes=5)  # with a rank that does not come to a collective


@dataclass(frozen=True)
class Task:
    """What a world is to measure: the first two steps of one candidate, or rounds of several, the reference among them.

    A candidate takes part in each round, or in one of so many where ``every`` has its name.
    """

    model: str
    ranks: int
    backend: str
    dtype: str
    optimizers: list[str]
    reference: str
    rounds: int = 0
    warmup: int = 0
    seed: int = 0
    every: dict[str, int] | None = None

    @property
    def where(self) -> str:
        """In words."""
        return f"{self.model}, {self.ranks:,} {'simulated ' if self.backend == 'fake' else ''}ranks"


Say: TypeAlias = Callable[[dict[str, Any]], None]


def carry_out(task: Task, say: Say) -> None:
    """Measure in the process group that there is, and tell each finding as it comes.

    ``{"first": [[cpu, wall], ...]}``, the seconds of the first and the second step, or ``{"left_out": why}``; of rounds
    ``{"ready": name, "collectives": ..., "bytes": ..., "closed_form": ...}`` for each candidate, then
    ``{"round": {name: [cpu, wall]}}``, with ``{"left_out": {name: why}}`` where that has changed.

    Raises:
        UserError: the reference is left out of the rounds.
    """
    mesh = init_device_mesh("cpu", (task.ranks,))
    if task.rounds:
        _rounds(task, mesh, say)
        return
    try:
        say({"first": _first_steps(CANDIDATES[task.optimizers[0]], task, mesh)})
    except LeftOutError as error:
        say({"left_out": str(error)})


def sharded(shapes: Model, mesh: DeviceMesh, dtype: torch.dtype) -> Weights:
    """Random parameters, of which only what is here is made."""
    generator = torch.Generator().manual_seed(0)

    def parameter(shape: Shape) -> Parameter:
        placements = [Shard(0) if shape else Replicate()]
        x = zeros(shape, dtype=dtype, device_mesh=mesh, placements=placements)
        x.to_local().normal_(0.0, 0.02, generator=generator)
        return Parameter(x)

    return Weights([parameter(shape) for shape in shapes.plain], [parameter(shape) for shape in shapes.stacked])


def _first_steps(candidate: Candidate, task: Task, mesh: DeviceMesh) -> list[tuple[float, float]]:
    """Building it with its first step, and the second.

    What it costs once beside that, imports and kernels that are compiled, a small model that is not sharded pays first.
    """
    candidate.load()
    shapes = ((8, 4), (4,)), ((2, 8, 4),)
    small = Weights(*([Parameter(torch.ones(shape)) for shape in some] for some in shapes))
    fresh_gradients(small, make_gradients(small), make_gradients(small))
    candidate.attempt(candidate.start(small).step)
    weights = sharded(model(task.model), mesh, getattr(torch, task.dtype))
    source, gradients = make_gradients(weights), make_gradients(weights)
    optimizer: Any = None

    def step() -> None:
        nonlocal optimizer
        if optimizer is None:
            optimizer = candidate.start(weights)
        candidate.attempt(optimizer.step)

    found = []
    for _ in range(2):
        fresh_gradients(weights, gradients, source)
        found.append(_time(step))
    return found


def _rounds(task: Task, mesh: DeviceMesh, say: Say) -> None:
    rounds: Rounds[tuple[float, float]] = Rounds(task.reference, task.where, task.seed)
    some = sharded(model(task.model), mesh, getattr(torch, task.dtype))
    source, gradients = make_gradients(some), make_gradients(some)
    del some

    def start(candidate: Candidate) -> dict[str, Any]:
        """Three steps, of which the last is counted."""
        candidate.load()
        weights = sharded(model(task.model), mesh, getattr(torch, task.dtype))
        optimizer = candidate.start(weights)

        def step() -> tuple[float, float]:
            fresh_gradients(weights, gradients, source)
            return _time(lambda: candidate.attempt(optimizer.step))

        step(), step()
        fresh_gradients(weights, gradients, source)
        counted = Collectives()
        with counted:
            candidate.attempt(optimizer.step)
        rounds.steps[candidate.name] = step
        form = closed_form(optimizer, task.ranks)
        return {"collectives": dict(counted.calls), "bytes": counted.bytes, "closed_form": form}

    for name in sorted(task.optimizers, key=lambda name: name != task.reference):
        try:
            counted = start(CANDIDATES[name])
        except LeftOutError as error:
            rounds.leave_out(name, str(error))
            say({"ready": name, "left_out": rounds.left_out})
        else:
            say({"ready": name, **counted})
    every = task.every or {}
    with without_collections():
        for k in range(-task.warmup, task.rounds):
            resting = [name for name, n in every.items() if k % n]
            found = rounds.step_all(resting)
            say({"warmup" if k < 0 else "round": found, "left_out": rounds.left_out})


def _time(act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of CPU time of this process, and of the clock; all ranks begin together."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    act()
    return time.process_time() - cpu, time.perf_counter() - wall


def join(task: Task, rank: int, store: str) -> None:
    """Make the process group; ranks that are real meet in a file."""
    if task.backend == "fake":
        dist.init_process_group("fake", rank=rank, world_size=task.ranks, store=fake_store())
    else:
        meeting = dist.FileStore(store, task.ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", rank=rank, world_size=task.ranks, store=meeting, timeout=PATIENCE)


def main() -> None:
    """Read a line from the parent, and tell it what is found; end if it does."""
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    task, rank = Task(**given["task"]), given["rank"]

    def say(found: dict[str, Any]) -> None:
        if rank == 0:
            print(f"{MARK}{json.dumps(found)}", flush=True)

    code = 0
    try:
        join(task, rank, given["store"])
        carry_out(task, say)
    except UserError as error:
        say({"error": str(error)})
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end, where a thread of gloo may abort


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
