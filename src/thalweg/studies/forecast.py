"""What a table of a recipe asks for before anything starts: downloads, memory a device, operations, time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thalweg.lab import tasks
from thalweg.lab.contenders import Contender, contender
from thalweg.lab.engine import RunSpec
from thalweg.lab.search.forecast import run_overhead, timing_pass
from thalweg.lab.search.points import per_study
from thalweg.torch_private import FakeTensorMode

if TYPE_CHECKING:
    from thalweg.sharding import plan
    from thalweg.studies.fits import Needs, Table
    from thalweg.studies.recipe import Comparison


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one table.

    ``download`` is what is fetched, empty if nothing; ``examples`` of the training set (None: unknown before it is
    there); ``runs`` of all; ``needs`` of a device of the ``mesh``; ``operations`` of all runs, forward and backward,
    without evaluation and the optimizer's own (None: unknown); ``core_seconds`` of all runs' steps, roughly, on a CPU;
    ``beside`` those of evaluations, models and records (None: the data are not there); ``optimizers`` take turns in the
    timing pass.
    """

    download: str
    parameters: int
    examples: int | None
    steps: int | None
    runs: int
    mesh: plan.Mesh
    needs: Needs
    operations: float | None
    core_seconds: float | None
    beside: float | None
    optimizers: int

    def whole(self, tflops: float | None) -> float | None:
        """How long all of it takes: the runs, and where it is known what is done beside them.

        On this CPU that is their evaluations, models and records, and the timing pass; on devices the timing pass,
        where a single one does the work.
        """
        seconds = self.seconds(tflops)
        if seconds is None or self.steps is None:
            return None
        if self.mesh.ranks == 1:
            of_steps = seconds if tflops is not None else self.core_seconds or 0.0
            seconds += timing_pass(of_steps / (self.runs * self.steps), self.optimizers, self.parameters)
        if tflops is not None:
            return seconds
        return seconds + (self.beside or 0.0) / (os.cpu_count() or 1)

    def seconds(self, tflops: float | None) -> float | None:
        """How long all runs take on devices that sustain so many 1e12 operations a second; None: on this CPU."""
        if tflops is None:
            return None if self.core_seconds is None else self.core_seconds / (os.cpu_count() or 1)
        return None if self.operations is None else self.operations / (self.mesh.ranks * tflops * 1e12)


def forecast(table: Table, mesh: plan.Mesh, *, estimate: bool = False) -> Forecast:
    """Without data that are to be fetched, and without the memory of the model.

    Args:
        table: of a recipe.
        mesh: the devices, as ``table.mesh`` returns it.
        estimate: whether activations are estimated.

    Raises:
        UserError: no such optimizer.
    """
    one, task = table.one, tasks.find(table.one.task)
    examples, splits = getattr(task, "published_examples", None), None
    if not getattr(task, "download", ""):
        splits = tasks.load(one.task)[1]
        examples = len(splits.train)
    steps = one.steps if one.steps is not None else None if examples is None else one.length(examples)
    trials = one.tuning_seeds * sum(_points(contender(name), one) for name in one.optimizers)
    seeds = one.seeds * len(one.optimizers)
    runs = trials + seeds
    beside = None
    if splits is not None and steps is not None:
        count = min(one.regimen.get("evaluations", RunSpec(one.task, one.batch_size, steps, "", {}).evaluations), steps)
        trial, seed = (run_overhead(task, splits, count, test=test) for test in (False, True))
        beside = (trials * trial + seeds * seed) / 1e6
    seen = None if steps is None else runs * steps * one.batch_size
    return Forecast(
        download=getattr(task, "download", ""),
        parameters=sum(p.numel for p in table.parameters),
        examples=examples,
        steps=steps,
        runs=runs,
        mesh=mesh,
        needs=table.needs(mesh, estimate=estimate),
        operations=None if seen is None else seen * operations(task),
        core_seconds=None if steps is None else runs * tasks.cost(task, one.batch_size, steps) / 1e6,
        beside=beside,
        optimizers=len(one.optimizers),
    )


def _points(chosen: Contender, one: Comparison) -> int:
    """How many points an optimizer is tried at."""
    return chosen.grid if chosen.grid is not None else one.studies * per_study(chosen.space, one.trials)


def operations(task: tasks.Task) -> float:
    """Floating-point operations of one example, forward and backward, as torch counts them: those of its products."""
    inputs, targets = task.example()
    with sdpa_kernel(SDPBackend.MATH), FakeTensorMode() as fake, FlopCounterMode(display=False) as counter:
        model: Any = task.skeleton()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("batched_mm")  # the one whose shapes do not depend on the routing
        if isinstance(inputs, Mapping):
            output = model(**{name: fake.from_tensor(one) for name, one in inputs.items()})
        else:
            output = model(fake.from_tensor(inputs))
        torch.autograd.backward(task.loss(output, fake.from_tensor(targets)))
    return float(counter.get_total_flops()) / len(targets)
