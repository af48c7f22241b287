"""Expert parallelism: each process keeps some experts whole, and tokens travel to the experts that they are sent to."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.func import functional_call

from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread(model: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Leave each process its share of every layer's experts, and have the layers send tokens where they belong.

    A layer of experts is a module with ``num_experts``, parameters whose first axis counts them, and
    ``forward(hidden_states, top_k_index, top_k_weights)`` with shapes (tokens, width), (tokens, k), (tokens, k), as
    transformers has them. Its parameters become DTensors in shards along that axis; names stay.

    Args:
        model: the same on every process.
        mesh: of one axis, all processes.

    Returns:
        The experts' parameters, which nothing else is to shard.

    Raises:
        UserError: the model has no such layer, or a layer's experts cannot be shared out evenly.
    """
    found: set[nn.Parameter] = set()
    for name, module in list(model.named_modules()):
        if _is_layer(module):
            if module.num_experts % mesh.size():
                raise UserError(
                    f"--sharding fsdp2+ep needs a number of processes that divides the experts of a layer: {name} has "
                    f"{module.num_experts}, there are {mesh.size()} processes"
                )
            _spread(module, mesh)
            found |= set(module.parameters(recurse=False))
    if not found:
        raise UserError("--sharding fsdp2+ep needs a model with layers of stacked experts: use fsdp2")
    return found


def _is_layer(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    count = getattr(module, "num_experts", None)
    return isinstance(count, int) and any(p.ndim == 3 for p in own) and all(len(p) == count for p in own)


def _spread(layer: Any, mesh: DeviceMesh) -> None:
    ranks, rank, group = mesh.size(), mesh.get_local_rank(), mesh.get_group()
    experts = layer.num_experts // ranks
    for name, p in list(layer.named_parameters(recurse=False)):
        mine = p.detach()[rank * experts : (rank + 1) * experts].clone()
        setattr(layer, name, nn.Parameter(DTensor.from_local(mine, mesh, [Shard(0)], run_check=False)))
    ours = copy.copy(layer)  # the same layer with as many experts as are here
    ours.num_experts = experts
    ours._parameters = {name: p.to_local() for name, p in layer.named_parameters(recurse=False)}

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        chosen = top_k_index.flatten()
        order = chosen.argsort(stable=True)  # by expert, and so by process
        token = order // top_k_index.shape[1]
        leaving = chosen.bincount(minlength=layer.num_experts).view(ranks, experts).sum(1)
        coming = torch.empty_like(leaving)
        dist.all_to_all_single(coming, leaving, group=group)
        out, into = leaving.tolist(), coming.tolist()
        tokens = _exchange(hidden_states[token], out, into, group)
        which = _exchange(chosen[order], out, into, group) - rank * experts
        local = {name: _mean_over(p.to_local(), ranks) for name, p in layer.named_parameters(recurse=False)}
        if len(tokens):
            said = functional_call(ours, local, (tokens, which[:, None], torch.ones_like(tokens[:, :1])))
        else:  # gradients of zero all the same: the optimizers of all processes step together
            said = tokens + 0.0 * torch.stack([p.flatten()[0] for p in local.values()]).sum()
        back = _exchange(said, into, out, group) * top_k_weights.flatten()[order, None]
        return torch.zeros_like(hidden_states).index_add(0, token, back.to(hidden_states.dtype))

    layer.forward = forward


def _mean_over(local: Tensor, ranks: int) -> Tensor:
    """The same, its gradient divided by ``ranks``: losses are averaged over processes, tokens of all have been here."""
    if local.requires_grad:
        local.register_hook(lambda gradient: gradient / ranks)  # type: ignore[no-untyped-call]
    return local


def _exchange(rows: Tensor, out: list[int], into: list[int], group: Any) -> Tensor:
    found: Tensor = _Exchange.apply(rows, out, into, group)  # type: ignore[no-untyped-call]
    return found


class _Exchange(torch.autograd.Function):
    """Rows to other processes, and theirs here; gradients go back the way the rows came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, out: list[int], into: list[int], group: Any) -> Tensor:
        ctx.out, ctx.into, ctx.group = out, into, group
        return _exchanged(rows, out, into, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(gradient, ctx.into, ctx.out, ctx.group), None, None, None


def _exchanged(rows: Tensor, out: list[int], into: list[int], group: Any) -> Tensor:
    found = rows.new_empty((sum(into), *rows.shape[1:]))
    dist.all_to_all_single(found, rows.contiguous(), into, out, group=group)
    return found
