"""Tensor and expert parallelism of transformers' models, by the plans that these bring and transformers' own engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from thalweg.lab import skeletons
from thalweg.records.errors import UserError
from thalweg.sharding.plan import check_mesh

if TYPE_CHECKING:
    from thalweg.sharding.plan import Mesh


def check(model: nn.Module, mesh: Mesh) -> None:
    """Raise ``UserError`` where a run cannot cut the model along the axes of the mesh, ``thalweg plan`` as well."""
    if mesh.tensor == mesh.expert == 1:
        return
    from transformers import PreTrainedModel

    try:
        check_mesh(skeletons.parameters(model), mesh)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    plans: Any = model if isinstance(model, PreTrainedModel) else None
    if mesh.tensor > 1 and not (plans and plans.tp_plan):
        raise UserError(f"--mesh tensor={mesh.tensor} needs a model that transformers has a plan for: use shard")
    if mesh.expert > 1 and not (plans and plans.ep_plan):
        raise UserError(f"--mesh expert={mesh.expert} needs experts that transformers has a plan for: use shard")
    for heads in ("num_attention_heads", "num_key_value_heads"):
        if (count := getattr(plans.config, heads, 0)) % mesh.tensor:
            raise UserError(f"--mesh tensor must divide the {count} {heads} of the model, got {mesh.tensor}")


def distributed(model: nn.Module, mesh: Mesh, precision: str) -> nn.Module:
    """The model's parameters as shards, those that its plans name cut along ``tensor`` and ``expert`` before.

    Each layer's experts are shared out over both axes, as in transformers none is cut; tokens travel to them.

    Args:
        model: the same on every process.
        mesh: of all processes, along ``tensor``, ``expert`` or both.
        precision: "no", or "bf16", in which parameters are gathered, while gradients are summed in float32.

    Raises:
        UserError: the model has no such plan, or its sizes do not divide.
    """
    from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]

    check(model, mesh)
    if precision == "fp16":
        raise UserError("--precision must be no or bf16 with --mesh tensor or expert, got fp16")
    config = DistributedConfig(
        tp_size=mesh.tensor,
        ep_size=mesh.tensor * mesh.expert if mesh.expert > 1 else 1,
        fsdp_size=mesh.shard * mesh.expert,
        dp_replicate_size=mesh.data,
        fsdp_mixed_precision=precision == "bf16",
    )
    plans: Any = model
    config, _, on = plans.prepare_distribute_model(config)
    found: nn.Module = plans.maybe_distribute_model(model, config, on)
    return found
