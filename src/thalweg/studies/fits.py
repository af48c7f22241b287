"""Whether a table of a recipe suits the devices that carry it out: how many there are, their mesh, their memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thalweg.lab import plans, skeletons
from thalweg.lab.contenders import base_of
from thalweg.lab.engine import data
from thalweg.lab.engine.loop import EVALUATION_BATCH
from thalweg.records.errors import UserError
from thalweg.records.regimen import AXES
from thalweg.sharding import plan
from thalweg.studies.activations import activations
from thalweg.studies.run import execution_of

if TYPE_CHECKING:
    from thalweg.studies.recipe import Comparison

OURS = {"lamb": ("LAMB", "float32"), "alto": ("ALTO", "float32"), "alto-bf16": ("ALTO", "bfloat16"),
        "alto-8bit": ("ALTO", "8bit")}  # fmt: skip
"""Contenders that are ALTO or Lamb, and what their state is stored as."""
BUFFERS = {"sgd": 1, "e-sgd": 2, "muon": 2, "e-adamw": 3, "e-muon": 3, "ademamix": 3, "mars": 3, "ema-nesterov": 3,
           "soap": 6}  # fmt: skip
"""As many as the parameters, of others; 2 for those not listed. SOAP's factors come on top of it."""
SMALLER = ("alto-bf16", "alto-8bit", "lamb", "adamw", "sgd")
"""Optimizers that are proposed where another one's state is too large."""
DOUBLED = 12  # how often more devices are tried, twice as many each time


def planned(base: str) -> plan.Optimizer:
    """A contender as the plan of a step knows it."""
    if base in OURS:
        return next(one for one in plan.PLANNED if (one.name, one.state) == OURS[base])
    return plan.Optimizer(base, BUFFERS.get(base, 2))


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of a device for a step, with the ``optimizer`` of a table that needs most.

    ``examples`` go forward and backward together, in so many ``parts`` of a step. ``activations`` are held meanwhile,
    or while examples are scored, if that is more (None: not known), and ``unsharded`` what FSDP2 has gathered and
    summed until the last part, where shards are made then.
    """

    optimizer: str
    cost: plan.Cost
    examples: int
    parts: int
    activations: int | None
    unsharded: int

    @property
    def total(self) -> int:
        """At most: in backward, or in the optimizer's step."""
        return self.cost.fused + max(self.cost.temporary, self.unsharded + (self.activations or 0))


class Table:
    """A table of a recipe beside its model without memory.

    Raises:
        UserError: no such task, or options of which one would be ignored.
    """

    def __init__(self, one: Comparison) -> None:
        self.one = one
        execution_of(one)
        self.model = skeletons.model(one.task)
        self.parameters = skeletons.parameters(self.model)

    @property
    def name(self) -> str:
        """What a user knows it by."""
        return f"{self.one.task} at batch size {self.one.batch_size:,}"

    def mesh(self, devices: int | None) -> plan.Mesh:
        """Its own mesh, or so many devices along the axis of its sharding (None: as many as it is meant for).

        Raises:
            UserError: it is for another number of devices, has fewer examples, or its model cannot be on the mesh.
        """
        one = self.one
        mesh = plan.Mesh(**(one.mesh or {AXES[one.sharding]: devices or one.devices or 1}))
        if devices not in (None, mesh.ranks):
            raise UserError(
                f"{self.name} is for {mesh.ranks} devices, {mesh}, got {devices}: start as many processes, or give a "
                "copy of the recipe another mesh"
            )
        return self._checked(mesh)

    def _checked(self, mesh: plan.Mesh) -> plan.Mesh:
        one = self.one
        if (takers := mesh.ranks // mesh.tensor) > one.batch_size:
            raise UserError(f"{self.name} is for at most {one.batch_size} devices that share a batch, got {takers}")
        try:
            plans.check(self.model, mesh)
        except UserError as error:
            said = str(error).removeprefix("--")
            raise UserError(f"{one.task} on {mesh.ranks} devices, {one.sharding}: {said}") from None
        return mesh

    def _with(self, **values: Any) -> Table:
        found = copy.copy(self)
        found.one = replace(self.one, **values)
        return found

    def needs(self, mesh: plan.Mesh, *, estimate: bool = True) -> Needs:
        """What a device of the mesh needs.

        Args:
            mesh: one that :meth:`mesh` returns.
            estimate: whether activations are estimated: not those of experts, to whom tokens travel, nor of tensor
                parallelism, which shares them out.
        """
        one, parameters = self.one, self.parameters
        costs = {base: plan.cost(parameters, mesh, planned(base)) for base in map(base_of, one.optimizers)}
        optimizer = max(costs, key=lambda base: costs[base].total)
        narrow = one.regimen.get("precision", "no")
        parts = data.parts(range(one.batch_size), 0, mesh.ranks // mesh.tensor, one.micro_batch)
        examples = len(parts[0])
        held = None
        if estimate and mesh.tensor == 1 and not any(p.stacked for p in parameters):
            held = activations(one.task, examples, narrow, again=one.activation_checkpointing)
            together = min(EVALUATION_BATCH, one.micro_batch or EVALUATION_BATCH)  # of as many as there are
            held = max(held, activations(one.task, together, narrow, scored=True))
        unsharded = 0
        if one.reshard == "last" and mesh.shard * mesh.expert > 1:
            gathered = plan.DTYPES["float32" if narrow == "no" else "bfloat16"]
            unsharded = (gathered + plan.DTYPES["float32"]) * plan.unsharded_numel(parameters, mesh)
        return Needs(optimizer, costs[optimizer], examples, len(parts), held, unsharded)

    def alternatives(self, mesh: plan.Mesh, memory: int) -> Iterator[tuple[str, int]]:
        """What would fit into so many bytes a device, and what it would need there.

        The fewest devices, by doubling an axis over which the model is shared out, or the batch where none is; the
        largest micro-batch, by halving; those of :data:`SMALLER`.
        """
        axes = {"ddp": ("data",), "fsdp2": ("shard",), "fsdp2+ep": ("expert", "shard")}[self.one.sharding]
        for axis, doubled in itertools.product(axes, range(1, DOUBLED + 1)):
            more = replace(mesh, **{axis: getattr(mesh, axis) << doubled})
            with suppress(UserError):
                if (total := self.needs(self._checked(more)).total) <= memory:
                    yield f"{more.ranks:,} devices, {more}", total
                    break
        examples = self.needs(mesh).examples
        while examples > 1:
            examples //= 2
            if (total := self._with(micro_batch=examples).needs(mesh).total) <= memory:
                yield f"micro_batch = {examples}", total
                break
        for name in SMALLER:
            if (total := self._with(optimizers=(name,)).needs(mesh).total) <= memory:
                yield name, total
