"""E and the update of torch's Adam and AdamW in one pass over memory, on the CPU and on CUDA.

E alone reads g and b and writes g' and b, 16 bytes per parameter in float32, and a fused Adam then moves 28 more. The
kernels of ALTO without the trust ratio do both in 36, and keep no g': 5 reads and 4 writes. What they compute is what
the base computes from g', up to rounding. On CUDA, with Triton's, that is one launch for each group and dtype, and
nothing is read back; those have yet to run on a GPU, as :mod:`thalweg.kernels.triton` says.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from thalweg.arguments import check_nonnegative
from thalweg.kernels import Hyper, Wanted, is_abstract
from thalweg.kernels.checks import PLAIN, holds_its_values
from thalweg.kernels.dispatch import has_kernels
from thalweg.kernels.pieces import Scratch
from thalweg.optim import layers
from thalweg.optim.exploration import ALPHA, BETA, EMA, Groups, is_watched
from thalweg.optim.hyperparameters import check_betas, check_lr
from thalweg.optim.plain import as_scalar, make_options_plain
from thalweg.sharding import is_sharded, local, placement, zeros_like
from thalweg.torch_private import init_group, refuse_if_capturing

if TYPE_CHECKING:
    from torch.optim import Optimizer

_DTYPES = (torch.float32, torch.float64)  # in others, the base rounds its own state


def split(base: Optimizer) -> tuple[Groups, Groups]:
    """The parameters that the kernels step for the base, and those that it steps itself, by group.

    The kernels take Adam without coupled weight decay and AdamW, not a subclass, without hooks on ``step`` or another
    in its place; groups without amsgrad and maximize in which α is not 0; and in those float32 and float64 parameters,
    not sharded or sharded as their gradients are. On CUDA the group has ``fused=True``, and there is Triton and a GPU
    of compute capability 8.0 at least. On the CPU there is a C++ compiler, and the group has ``fused=True``, or leaves
    ``fused`` and ``foreach`` open, and is not ``capturable``. Each parameter is judged by itself and its group alone,
    so that it makes the same step whoever else is there.
    """
    first = next((p for group in base.param_groups for p in group["params"]), None)
    if type(base) not in (Adam, AdamW) or is_watched(base) or first is None or is_abstract(first):
        return [], base.param_groups
    taken: Groups = []
    left: Groups = []
    for group in base.param_groups:
        ours: list[Tensor] = []
        others: list[Tensor] = []
        takes = functools.cache(functools.partial(_takes, group))
        for p in group["params"]:
            if p.requires_grad or p.grad is not None:
                fits = p.dtype in _DTYPES and takes(p.device, p.dtype) and _is_walkable(p, p.grad)
                (ours if fits else others).append(p)
        taken += [{**group, "params": ours}] if ours else []
        left += [{**group, "params": others}] if others else []
    return (taken, left) if taken else ([], base.param_groups)


def _is_walkable(p: Any, grad: Any) -> bool:
    """Whether memory holds the values, and one shard of the gradient belongs to one of the parameter.

    That of a sum still to be taken does not.
    """
    if type(p) in PLAIN and (grad is None or type(grad) in PLAIN):
        return True
    if not all(t is None or holds_its_values(type(local(t))) for t in (p, grad)):
        return False
    if not is_sharded(p) or grad is None:
        return True
    return placement(grad) == placement(p)


def _takes(group: dict[str, Any], device: torch.device, dtype: torch.dtype) -> bool:
    wanted, on_cpu = group["fused"], device.type == "cpu"
    if wanted is None:
        wanted = on_cpu and group["foreach"] is None
    return (
        bool(wanted and group[ALPHA] != 0.0)
        and not any(group[name] for name in ("amsgrad", "maximize", "differentiable"))
        and (group["decoupled_weight_decay"] or group["weight_decay"] == 0.0)
        and not any(isinstance(beta, Tensor) for beta in group["betas"])
        and not (group["capturable"] and on_cpu)
        and has_kernels(device, dtype)  # last, as it may import Triton
    )


def check_options(groups: Groups) -> None:
    """Raise ``ValueError`` for what a schedule may have written into groups and the kernels cannot take.

    Numbers of NumPy and 0-d tensors become Python's, as 1 - β2 would be rounded to their dtype.
    """
    for group in groups:
        make_options_plain(group, ("lr", "betas", "eps", "weight_decay"), ("betas",))
        group.update({name: as_scalar(group[name]) for name in ("eps", "weight_decay")})
        check_lr(group["lr"], may_read=not group["capturable"], may_read_back=False)
        check_betas(group["betas"])
        check_nonnegative("eps", group["eps"])
        check_nonnegative("weight_decay", group["weight_decay"])


def plan_step(
    base: Any, groups: Groups, stepped: list[list[layers.Stepped]], proceed: Tensor | None = None
) -> list[layers.GroupPlan]:
    """A step of the base on g' of ``groups``; nothing changes, but state that is missing is made as the base makes it.

    Args:
        base: the optimizer.
        groups: what the kernels step for it, as :func:`split` says.
        stepped: those parameters of each group that have a gradient.
        proceed: whether the step is taken or skipped, if that is decided on the device.
    """
    if groups:
        refuse_if_capturing(base)  # as its own step does
    plans = []
    proceed = None if proceed is None else proceed.float()
    for group, some in zip(groups, stepped, strict=True):
        _init_sharded(base, group)
        init_group(base, group)
        for p in group["params"]:
            if p.grad is not None and EMA not in base.state[p]:
                base.state[p][EMA] = zeros_like(p, p.dtype)
        beta2, beta3 = group["betas"]
        hyper = Hyper(
            lr=group["lr"],
            alpha=group[ALPHA],
            beta1=group[BETA],
            beta2=beta2,
            beta3=beta3,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            trust_ratio=False,
        )
        # Where the base counts, and which must not be waited for.
        on_device = any(not base.state[p]["step"].is_cpu for _, p, *_ in some)
        wanted = Wanted(fused=on_device or None, capturable=on_device)  # on the CPU foreach, no error, without kernels
        plans.append(layers.plan_group(group, some, base.state, hyper, wanted, proceed))
    return plans


def _init_sharded(base: Any, group: dict[str, Any]) -> None:
    """Make the state of sharded parameters as :func:`init_group` does, which takes a DTensor's operations for each."""
    for p in group["params"]:
        if p.grad is None or not is_sharded(p) or base.state[p]:
            continue
        on_device = group["capturable"] or group["fused"]
        wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
        dtype = torch.float64 if wide else torch.float32
        step = torch.zeros((), dtype=dtype, device=p.device if on_device else "cpu")
        base.state[p].update(step=step, exp_avg=zeros_like(p, p.dtype), exp_avg_sq=zeros_like(p, p.dtype))


def carry_out(plans: list[layers.GroupPlan]) -> None:
    """Take the step that is planned, and move b on."""
    for planned in plans:
        layers.count_step(planned)
        for backend, bucket in planned.buckets:
            backend.step(bucket, planned.hyper, layers.scales_of(planned, bucket, None), Scratch())
        if sharded := [p for p in planned.group["params"] if is_sharded(p) and p.grad is not None]:
            torch.autograd.graph.increment_version(sharded)  # as kernels do for the shards
