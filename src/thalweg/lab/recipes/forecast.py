"""What a table of a recipe asks for before anything starts: downloads, memory a device, floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thalweg.lab import tasks
from thalweg.lab.contenders import base_of, contender

if TYPE_CHECKING:
    from thalweg.lab.recipes.recipe import Comparison

STATES = {"sgd": 4, "e-sgd": 8, "muon": 8, "alto": 12, "e-adamw": 12, "e-muon": 12, "ademamix": 12, "mars": 12,
          "ema-nesterov": 12, "soap": 24}  # fmt: skip
"""Bytes of float32 state a parameter; 8 for those that are not here. SOAP's factors are on top of it."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one table.

    ``download`` is what is fetched, empty if nothing; ``examples`` of the training set (None: unknown before it is
    there); ``runs`` at least; ``bytes`` a device of parameters, gradients and optimizer state, without activations.
    """

    download: str
    parameters: int
    examples: int | None
    steps: int | None
    runs: int
    bytes: int


def forecast(one: Comparison, devices: int) -> Forecast:
    """Without data, and with the model on the meta device.

    Raises:
        UserError: no such task or optimizer.
    """
    task = tasks.find(one.task)
    parameters = tasks.parameters(task)
    examples = getattr(task, "published_examples", None)
    if examples is None and not getattr(task, "download", ""):
        examples = len(tasks.load(one.task)[1].train)
    shared = devices if one.sharding == "fsdp2" else 1
    state = max(STATES.get(base_of(name), 8) for name in one.optimizers)
    runs = 0
    for name in one.optimizers:
        grid = contender(name).grid
        runs += (one.trials * one.studies if grid is None else grid) + one.seeds
    return Forecast(
        download=getattr(task, "download", ""),
        parameters=parameters,
        examples=examples,
        steps=one.steps if one.steps is not None else None if examples is None else one.length(examples),
        runs=runs,
        bytes=parameters * (8 + state) // shared,
    )
