"""Where a run's model is: on one device, on several, or in shards."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from thalweg.lab import plans
from thalweg.lab.engine import blocks, variables
from thalweg.records.errors import UserError
from thalweg.records.regimen import AXES
from thalweg.sharding import whole
from thalweg.sharding.plan import Mesh

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.engine.execution import Execution
    from thalweg.lab.engine.spec import RunSpec

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def mesh_of(execution: Execution, processes: int) -> Mesh:
    """The mesh that all processes of a run are on.

    Raises:
        UserError: the mesh that was given is one of more processes, or of fewer.
    """
    if execution.mesh is None:
        return Mesh(**{AXES[execution.sharding]: processes})
    if execution.mesh.ranks != processes:
        raise UserError(
            f"--mesh must be of as many processes as there are, {processes}, got {execution.mesh}, which is "
            f"{execution.mesh.ranks}"
        )
    return execution.mesh


def sharded(model: nn.Module, mesh: Mesh, device: str, precision: str) -> nn.Module:
    """The model's parameters as shards, those of repeated blocks a block at a time.

    By torch's own call: Accelerate has FSDP2 for accelerators alone, and swaps the optimizer's parameters afterwards.

    Args:
        model: the same on every process.
        mesh: of all processes.
        device: the type of theirs.
        precision: a name of :data:`NARROW`, in which parameters are gathered, while gradients are summed in float32;
            or "no".

    Raises:
        UserError: the model cannot be cut along an axis of the mesh.
    """
    if mesh.tensor > 1 or mesh.expert > 1:
        return plans.distributed(model, mesh, precision)
    axes = {"data": mesh.data, "shard": mesh.shard} if mesh.data > 1 else {"shard": mesh.shard}
    on = init_device_mesh(device, tuple(axes.values()), mesh_dim_names=tuple(axes))
    # Arithmetic is autocast's, as on one process; what is gathered has its dtype already.
    narrow = NARROW.get(precision)
    policy = MixedPrecisionPolicy(narrow, narrow and torch.float32, cast_forward_inputs=False)
    shard = functools.partial(fully_shard, mesh=on, mp_policy=policy)
    if narrow is not None and (norms := [module for module in model.modules() if blocks.has_statistics(module)]):
        fully_shard(norms, mesh=on)  # one group of all: in torch parameters and statistics of a norm have one dtype
    for block in blocks.blocks(model):
        shard(block)
    shard(model)
    return model


def clip(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale gradients to a global norm of ``largest`` at most, as torch does it, but on any number of meshes."""
    meshes: dict[Any, list[nn.Parameter]] = defaultdict(list)
    for p in parameters:
        if p.grad is not None:
            meshes[getattr(p, "device_mesh", None)].append(p)
    gradients = [[p.grad for p in some if p.grad is not None] for some in meshes.values()]
    norms = [whole(nn.utils.get_total_norm(some)) for some in gradients]
    total = norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
    for some in meshes.values():
        nn.utils.clip_grads_with_norm_(some, largest, total)


@contextmanager
def micro_batch(model: nn.Module, accelerator: Accelerator, reshard: str, *, last: bool) -> Iterator[None]:
    """Forward and backward of one of the parts of a step, the ``last`` of which leaves gradients of them all."""
    if not isinstance(model, FSDPModule):
        with nullcontext() if last else accelerator.no_sync(model):
            yield
        return
    if reshard == "last":
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_forward(False)  # or parameters would be gathered again all the same
        model.set_reshard_after_backward(last)
    else:
        model.set_requires_all_reduce(last)  # of shards, over copies
    yield


def take_memory(model: nn.Module, device: torch.device) -> None:
    """Allocate parameters that are on the meta device; buffers keep their values."""
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
