"""What ``thalweg reproduce`` would do, table by table, and the refusal of what does not suit the devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from thalweg.commands.options import memory_size
from thalweg.commands.terminal import duration, size
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from thalweg.sharding.plan import Mesh
    from thalweg.studies.fits import Needs, Table
    from thalweg.studies.forecast import Forecast
    from thalweg.studies.recipe import Comparison, Recipe, Scale

TFLOPS = 100.0
"""What one device of a cluster sustains in bfloat16 on a large network: a third of an A100's peak."""
MEMORY = "80GB"
"""What it has."""


def check(scale: Scale, memory: str | None) -> None:
    """Raise where a table does not suit the processes that are there, or the memory of a device where that is known.

    Raises:
        UserError: for the first such table.
    """
    from thalweg.lab.engine.speed import device_memory
    from thalweg.studies.fits import Table

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    there = device_memory() if memory is None else memory_size(memory, "--memory")
    for one in scale.comparisons:
        if there is None and processes == 1 and not one.mesh:
            continue
        table = Table(one)
        mesh = table.mesh(processes)
        if there is not None and (needs := table.needs(mesh)).total > there:
            raise UserError(_refusal(table, mesh, needs, there, of_device=memory is None))


class DryRun:
    """What recipes would do on so many devices, said to a console; ``end`` refuses what does not fit."""

    def __init__(self, console: Any, scale: str, devices: int | None, tflops: float | None, memory: str | None) -> None:
        self.console, self.devices = console, devices
        self.tflops = TFLOPS if tflops is None and scale == "paper" else tflops
        self.memory = memory_size(MEMORY if memory is None and scale == "paper" else memory, "--memory")
        self.seconds, self.unknown, self.refusals = 0.0, 0, list[str]()

    def say(self, recipe: Recipe, scale: Scale) -> None:
        """What a recipe would do.

        Raises:
            UserError: its data are missing, or a table is for another number of devices.
        """
        self._print(f"{recipe.name}: {recipe.title}")
        if scale.measure:
            took = f"about {duration(60.0 * scale.minutes)}" if scale.minutes else "an unknown time"
            self._print(f"  a measurement, {scale.measure}: {took} on two cores; download: nothing")
            self.seconds += 60.0 * scale.minutes
            self.unknown += not scale.minutes
            return
        from thalweg.lab.search.forecast import START

        for one in scale.comparisons:
            self._say_table(one)
        self.seconds += 2.0 * START  # of workers, and of the one that times steps

    def _say_table(self, one: Comparison) -> None:
        from thalweg.studies.fits import Table
        from thalweg.studies.forecast import forecast

        table = Table(one)
        mesh = table.mesh(self.devices)
        found = forecast(table, mesh, estimate=self.memory is not None)
        seconds = found.whole(self.tflops)
        self.seconds += seconds or 0.0
        self.unknown += seconds is None
        steps = "steps set by the size of its data" if found.steps is None else f"{found.steps:,} steps"
        work = "" if found.operations is None else f"{found.operations:.2g} operations, "
        took = "an unknown time" if seconds is None else f"about {duration(seconds)}"
        self._print(
            f"  {table.name}: {found.runs} runs of {steps}; {work}{took}; download: {found.download or 'nothing'}"
        )
        self._print(f"    {_carried_out(one, mesh, found.needs)}")
        fits = ""
        if self.memory is not None:
            fits = f"; {'fits' if found.needs.total <= self.memory else 'does not fit'} in {size(self.memory)}"
        self._print(f"    {_held(found)}{fits}")
        self._print(f"    {_traffic(found.needs)}")
        if self.memory is not None and found.needs.total > self.memory:
            self.refusals.append(_refusal(table, mesh, found.needs, self.memory))

    def end(self) -> None:
        """How long all of it takes.

        Raises:
            UserError: some table does not fit.
        """
        if self.tflops is None:
            where = f"on {os.cpu_count()} idle cores as fast as those of the EPYC 9005 on which it was measured"
        else:
            each = f"that sustain {self.tflops:g} TFLOP/s each (--devices, --tflops); small networks sustain less"
            where = f"on {f'{self.devices:,} devices' if self.devices else 'those devices'} {each}"
        without = f", without {self.unknown} whose time is unknown," if self.unknown else ""
        self._print(f"in total about {duration(self.seconds)}{without} {where}")
        if self.refusals:
            more = len(self.refusals) - 1
            raise UserError(self.refusals[0] + (f" (and {more} more table{'s' * (more > 1)})" if more else ""))

    def _print(self, said: str) -> None:
        self.console.print(said, soft_wrap=True)


def _carried_out(one: Comparison, mesh: Mesh, needs: Needs) -> str:
    parts = [
        f"{mesh.ranks:,} device{'s' * (mesh.ranks > 1)}" + (f", {mesh}" if mesh.ranks > 1 else ""),
        f"precision {one.regimen.get('precision', 'no')}",
        f"{needs.examples:,} example{'s' * (needs.examples > 1)} at a time"
        + (f" in {needs.parts:,} parts" if needs.parts > 1 else ""),
    ]
    parts += ["shards made after the last"] * (one.reshard == "last")
    parts += ["activation checkpointing" if one.activation_checkpointing else "no activation checkpointing"]
    return ", ".join(parts + ["compiled"] * one.compile)


def _held(found: Forecast) -> str:
    needs, cost = found.needs, found.needs.cost
    held = {"parameters": cost.parameters, "gradients": cost.gradients, "state": cost.state}
    held |= {"a step's temporary": cost.temporary}
    held |= {"whole parameters and gradients": needs.unsharded} if needs.unsharded else {}
    held |= {} if needs.activations is None else {"activations": needs.activations}
    sizes = ", ".join(f"{name} {size(count)}" for name, count in held.items())
    without = ", without activations" if needs.activations is None else ""
    return (
        f"{found.parameters:,} parameters; at most {size(needs.total)} a device with {needs.optimizer}: "
        f"{sizes}{without}"
    )


def _traffic(needs: Needs) -> str:
    added = needs.cost.all_reduces
    sums = " and ".join(f"an all-reduce of {size(one.bytes)} over {one.ranks:,}" for one in added) or "nothing"
    return f"checkpoint {size(needs.cost.checkpoint)}; {needs.optimizer} adds to a step's collectives {sums}"


def _refusal(table: Table, mesh: Mesh, needs: Needs, memory: int, *, of_device: bool = False) -> str:
    would = ", or ".join(f"{what} ({size(total)})" for what, total in table.alternatives(mesh, memory))
    devices = f"{mesh.ranks:,} device{'s' * (mesh.ranks > 1)}"
    got = f"got {size(memory)}{', which the device has' * of_device}"
    return (
        f"--memory must be at least {size(needs.total)} for {table.name} on {devices} with {needs.optimizer}, {got}; "
        + (f"what would fit: {would}" if would else "no more devices, micro-batch or optimizer would make it fit")
    )
