"""Tensor and expert parallelism of transformers' models, by the plans that these bring and transformers' own engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from thalweg.sharding.plan import Mesh


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
    from transformers import PreTrainedModel
    from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]

    plans: Any = model if isinstance(model, PreTrainedModel) else None
    if mesh.tensor > 1 and not (plans and plans.tp_plan):
        raise UserError(f"--mesh tensor={mesh.tensor} needs a model that transformers has a plan for: use shard")
    if mesh.expert > 1 and not (plans and plans.ep_plan):
        raise UserError(
            f"--mesh expert={mesh.expert} needs a model of transformers' with layers of stacked experts: use fsdp2, or "
            "shard"
        )
    if precision == "fp16":
        raise UserError("--precision must be no or bf16 with --mesh tensor or expert, got fp16")
    over = mesh.tensor * mesh.expert if mesh.expert > 1 else 1
    heads = ("num_attention_heads", "num_key_value_heads") if mesh.tensor > 1 else ()
    for name, ranks in [*((one, mesh.tensor) for one in heads), ("num_experts", over)]:
        count = getattr(plans.config, name, ranks)
        if count % ranks:
            raise UserError(f"--mesh {mesh} cannot share out evenly the {count} {name} of the model over {ranks}")
    config = DistributedConfig(
        tp_size=mesh.tensor,
        ep_size=over,
        fsdp_size=mesh.shard * mesh.expert,
        dp_replicate_size=mesh.data,
        fsdp_mixed_precision=precision == "bf16",
    )
    config, _, on = plans.prepare_distribute_model(config)
    found: nn.Module = plans.maybe_distribute_model(model, config, on)
    return found
