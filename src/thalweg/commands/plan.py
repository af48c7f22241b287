"""``thalweg plan``: what a training step costs on a cluster, before one rents it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from thalweg.commands import terminal
from thalweg.commands.options import memory_size, mesh, several


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of ``thalweg plan``."""

    mesh: Annotated[tuple[str, ...], several] = ()
    """Ranks along data (copies), shard (FSDP2), tensor and expert, such as data=8,shard=48 (default: 1 each)."""

    memory: str | None = None
    """Memory of a device, such as 80GB: says what fits."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of parameters and gradients: float32 or bfloat16."""


def plan(model: str, *, options: Plan | None = None) -> None:
    """Say what a step of AdamW, LAMB and ALTO costs each rank of a cluster: memory and collectives.

    Args:
        model: bert-base, resnet-50, gpt2-medium, a task (see `thalweg tasks`), module:Class, or a config.json of
            Hugging Face's.
        options: the cluster.
    """
    options = options or Plan()
    on = mesh(options.mesh)
    memory = memory_size(options.memory, "--memory")
    from thalweg.commands.plan_tables import tables
    from thalweg.lab import plans, skeletons
    from thalweg.sharding.plan import PLANNED, cost

    found = skeletons.model(model)
    plans.check(found, on)
    parameters = skeletons.parameters(found)
    costs = {one: cost(parameters, on, one, options.dtype) for one in PLANNED}
    console = terminal.console()
    console.print(tables(model, parameters, on, costs, options.dtype, memory))
