"""The step of torch's checkpoint loader, by which it has an optimizer make its state: recognised, and not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD

from thalweg.kernels import compute_dtype, has_numbers
from thalweg.optim.exploration import ALPHA, BY_PARAMETER, EMA
from thalweg.sharding import is_sharded, local
from thalweg.sharding.collectives import all_reduce, every_dim
from thalweg.torch_private import init_group

if TYPE_CHECKING:
    from torch.optim import Optimizer


def is_loaders_step(optimizer: Optimizer) -> bool:
    """Whether this step is the first, with a gradient for each parameter, all of them zeros, at learning rate 0.

    ``torch.distributed.checkpoint.state_dict`` takes such a step before it saves or loads the state of an optimizer
    that has none. Its zeros change no average, but counted as a step they would weigh in every bias correction to come.
    A warm-up from 0 has a gradient that is not zero; and where the optimizer was built with a learning rate of 0, the
    step may be its user's, and counts.
    """
    if torch.compiler.is_compiling() or optimizer.state:  # looked at, Dynamo takes the state for what it is before
        return False
    groups = optimizer.param_groups
    if any("first_index" in group for group in groups):  # a layer of its own, in backward
        return False
    rates = [group["lr"] for group in groups if "lr" in group]
    if not rates or not all(map(_is_zero, rates)) or _is_zero(optimizer.defaults.get("lr", 0.0)):
        return False
    params = [p for group in groups for p in group["params"] if p.requires_grad]
    if not params or not all(map(has_numbers, params)):
        return False
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    zero = all(p.grad is not None and p.grad.layout is torch.strided and not local(p.grad).any() for p in params)
    others = torch.tensor([0.0 if zero else 1.0], device="cpu")
    for mesh in dict.fromkeys(p.device_mesh for p in params if is_sharded(p)):
        others = all_reduce(others, mesh, every_dim(mesh))
    return others.item() == 0.0


def _is_zero(lr: Any) -> bool:
    if isinstance(lr, Tensor):
        return lr.is_cpu and has_numbers(lr) and lr.numel() == 1 and lr.item() == 0.0
    return bool(lr == 0.0)


def can_make_state(base: Optimizer) -> bool:
    """Whether :func:`make_state` knows how: for torch's own optimizers."""
    return type(base) in BY_PARAMETER


def make_state(base: Optimizer) -> None:
    """Make the state of one of torch's optimizers, and b, for each parameter that requires grad; no step is counted."""
    params = [p for group in base.param_groups for p in group["params"]]
    grads = [p.grad for p in params]
    try:
        for p in params:
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        for group in base.param_groups:
            if type(base) is not SGD:
                init_group(base, group)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = base.state[p]
                if type(base) is SGD and group["momentum"] != 0.0 and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(p)
                if group[ALPHA] != 0.0 and EMA not in state:
                    state[EMA] = torch.zeros_like(p, dtype=compute_dtype(p.dtype))
    finally:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
