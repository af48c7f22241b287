"""Where a run's model is: on one device, on several, or in shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from thalweg.lab.engine import experts, variables

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.execution import Execution
    from thalweg.lab.engine.spec import RunSpec


def accelerator_of(spec: RunSpec, execution: Execution, folder: Path) -> Accelerator:
    """Accelerate with what it would read from the environment said.

    Raises:
        UserError: the environment contradicts the spec.
    """
    variables.check(spec.precision)
    AcceleratorState._reset_state()  # the precision of an earlier run in this process
    return Accelerator(
        mixed_precision=spec.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        cpu=not torch.accelerator.is_available(),  # or the processes of torchrun would each train alone on a CPU
        log_with=list(execution.trackers) or None,
        project_dir=str(folder),
    )


def sharded(model: nn.Module, accelerator: Accelerator, execution: Execution) -> nn.Module:
    """The model's parameters as shards, those of repeated blocks a block at a time.

    By torch's own call: Accelerate has FSDP2 for accelerators alone, and swaps the optimizer's parameters afterwards.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    apart = experts.spread(model, mesh) if execution.sharding == "fsdp2+ep" else set()
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh, ignored_params=apart)
    fully_shard(model, mesh=mesh, ignored_params=apart)
    return model


def take_memory(model: nn.Module, device: torch.device) -> None:
    """Allocate parameters that are on the meta device; buffers keep their values."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
