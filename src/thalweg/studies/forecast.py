"""What a table of a recipe asks for before anything starts: downloads, memory a device, operations, time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thalweg.lab import skeletons, tasks
from thalweg.lab.contenders import Contender, base_of, contender
from thalweg.lab.engine import RunSpec
from thalweg.lab.search.forecast import run_overhead, timing_pass
from thalweg.lab.search.points import per_study
from thalweg.records.errors import UserError
from thalweg.records.regimen import AXES
from thalweg.sharding import plan
from thalweg.torch_private import FakeTensorMode

if TYPE_CHECKING:
    from thalweg.studies.recipe import Comparison

OURS = {"lamb": ("LAMB", "float32"), "alto": ("ALTO", "float32"), "alto-bf16": ("ALTO", "bfloat16"),
        "alto-8bit": ("ALTO", "8bit")}  # fmt: skip
"""Contenders that are ALTO or Lamb, and what their state is stored as."""
BUFFERS = {"sgd": 1, "e-sgd": 2, "muon": 2, "e-adamw": 3, "e-muon": 3, "ademamix": 3, "mars": 3, "ema-nesterov": 3,
           "soap": 6}  # fmt: skip
"""As many as the parameters, of others; 2 for those not listed. SOAP's factors come on top of it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one table.

    ``download`` is what is fetched, empty if nothing; ``examples`` of the training set (None: unknown before it is
    there); ``runs`` of all; ``cost`` of a step with the ``costliest`` of the optimizers, in bytes a device;
    ``operations`` of all runs, forward and backward, without evaluation and the optimizer's own (None: unknown);
    ``core_seconds`` of all runs' steps, roughly, on one core of a CPU; ``devices`` are those that a batch occupies;
    ``beside`` the core seconds of evaluations, models and records (None: the data are not there); ``optimizers`` take
    turns in the timing pass.
    """

    download: str
    parameters: int
    examples: int | None
    steps: int | None
    runs: int
    cost: plan.Cost
    costliest: str
    operations: float | None
    core_seconds: float | None
    devices: int
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
        if self.devices == 1:
            of_steps = seconds if tflops is not None else self.core_seconds or 0.0
            seconds += timing_pass(of_steps / (self.runs * self.steps), self.optimizers, self.parameters)
        if tflops is not None:
            return seconds
        return seconds + (self.beside or 0.0) / (os.cpu_count() or 1)

    def seconds(self, tflops: float | None) -> float | None:
        """How long all runs take on devices that sustain so many 1e12 operations a second; None: on this CPU."""
        if tflops is None:
            return None if self.core_seconds is None else self.core_seconds / (os.cpu_count() or 1)
        return None if self.operations is None else self.operations / (self.devices * tflops * 1e12)


def forecast(one: Comparison, devices: int) -> Forecast:
    """Without data that are to be fetched, and without the memory of the model.

    Raises:
        UserError: no such task or optimizer, or experts that cannot be shared out over so many devices.
    """
    task, parameters = tasks.find(one.task), skeletons.of_task(one.task)
    examples, splits = getattr(task, "published_examples", None), None
    if not getattr(task, "download", ""):
        splits = tasks.load(one.task)[1]
        examples = len(splits.train)
    steps = one.steps if one.steps is not None else None if examples is None else one.length(examples)
    devices = min(devices, one.batch_size)
    try:
        mesh = plan.Mesh(**(one.mesh or {AXES[one.sharding]: devices}))
        costs = {base: plan.cost(parameters, mesh, planned(base)) for base in map(base_of, one.optimizers)}
    except ValueError as error:
        raise UserError(f"{one.task} on {devices} devices, {one.sharding}: {error}") from None
    costliest = max(costs, key=lambda base: costs[base].total)
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
        parameters=sum(p.numel for p in parameters),
        examples=examples,
        steps=steps,
        runs=runs,
        cost=costs[costliest],
        costliest=costliest,
        operations=None if seen is None else seen * operations(task),
        core_seconds=None if steps is None else runs * tasks.cost(task, one.batch_size, steps) / 1e6,
        devices=mesh.ranks,
        beside=beside,
        optimizers=len(one.optimizers),
    )


def _points(chosen: Contender, one: Comparison) -> int:
    """How many points an optimizer is tried at."""
    return chosen.grid if chosen.grid is not None else one.studies * per_study(chosen.space, one.trials)


def planned(base: str) -> plan.Optimizer:
    """A contender as the plan of a step knows it."""
    if base in OURS:
        return next(one for one in plan.PLANNED if (one.name, one.state) == OURS[base])
    return plan.Optimizer(base, BUFFERS.get(base, 2))


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
