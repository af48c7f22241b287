"""E and the update of torch's fused Adam and AdamW in one pass over memory, on the CPU and on CUDA.

E alone reads g and b and writes g' and b, 16 bytes per parameter in float32, and a fused Adam then moves 28 more. The
kernels of ALTO without the trust ratio do both in 36, and keep no g': 5 reads and 4 writes. What they compute is what
the base computes from g', up to rounding. On CUDA, with Triton's, that is one launch for each group and dtype, and
nothing is read back; those have yet to run on a GPU, as :mod:`thalweg.backends.triton` says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from thalweg import layers
from thalweg.backends import Hyper, Scales
from thalweg.backends.choice import choose, has_kernels
from thalweg.backends.pieces import Scratch
from thalweg.exploration import ALPHA, BETA, EMA

if TYPE_CHECKING:
    from torch.optim import Optimizer

_DTYPES = (torch.float32, torch.float64)  # in others, the base rounds its own state


def applies(base: Optimizer) -> bool:
    """Whether the base's next step is one that the kernels can take for it.

    It is Adam without coupled weight decay or AdamW, not a subclass, with ``fused=True``, without amsgrad and maximize;
    on float32 or float64 parameters, not sharded, on the CPU with a C++ compiler and without ``capturable``, or on CUDA
    with Triton and a GPU of compute capability 8.0 at least; α is nowhere 0; and nobody watches or replaces the base's
    ``step``.
    """
    return (
        type(base) in (Adam, AdamW)
        and "step" not in vars(base)
        and not (base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks)
        and not torch.compiler.is_compiling()
        and all(_can_take(group) for group in base.param_groups)
    )


def _can_take(group: dict[str, Any]) -> bool:
    params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
    return (
        bool(group["fused"] and group[ALPHA] != 0.0)
        and not any(group[name] for name in ("amsgrad", "maximize", "differentiable"))
        and (group["decoupled_weight_decay"] or group["weight_decay"] == 0.0)
        and not any(isinstance(beta, Tensor) for beta in group["betas"])
        and all(p.dtype in _DTYPES and not layers.is_sharded(p) for p in params)
        and all(  # last, as it may import Triton
            has_kernels(device) and not (group["capturable"] and device.type == "cpu")
            for device in {p.device for p in params}
        )
    )


def step(base: Any, go: Tensor | None = None) -> None:
    """One step of the base on g', and b moved on; state that is missing is made as the base makes it.

    ``go`` is what the step counts for, if that is decided on the device.
    """
    base._accelerator_graph_capture_health_check()  # as its own step does
    go = None if go is None else go.float()
    for group in base.param_groups:
        steps: list[Tensor] = []
        base._init_group(group, [], [], [], [], [], steps)
        for p in group["params"]:
            if p.grad is not None and EMA not in base.state[p]:
                base.state[p][EMA] = torch.zeros_like(p, memory_format=torch.preserve_format)
        beta2, beta3 = group["betas"]
        hyper = Hyper(
            lr=group["lr"],
            alpha=group[ALPHA],
            beta1=group[BETA],
            beta2=beta2,
            beta3=beta3,
            eps=group["eps"],
            trust_eps=0.0,
            weight_decay=group["weight_decay"],
            trust_ratio=False,
            trust_clip=None,
            maximize=False,
            stochastic_rounding=False,
        )
        on_device = any(not count.is_cpu for count in steps)  # where the base counts, and nobody may wait for it
        for bucket in layers.buckets({**group, "norm_dims": None, "capturable": on_device}, base.state, go):
            device = bucket[0].param.device
            scales = Scales(go=None if go is None else go.to(device))
            choose(group, device).step(bucket, hyper, scales, Scratch())
