"""ALTO: LAMB (:mod:`thalweg.optim.lamb`, where the equations are) behind the adaptor E. Source: arXiv 2510.27153."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from thalweg.arguments import check_exploration
from thalweg.optim.lamb import BUFFERS, Lamb
from thalweg.theory.warning import Filter, warn_if_narrow

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from thalweg.kernels.rounding import StateDtype


class ALTO(Lamb):
    """ALTO: the adaptor E in front of LAMB, for large batches.

    State: ``exp_avg``, ``exp_avg_sq`` and ``explore_ema`` (b), 12 bytes per parameter in float32, 6 in bfloat16, 3.05
    in 8 bits. At ``alpha=0`` it is :class:`Lamb` bit for bit, and b is not allocated. If α first becomes nonzero during
    training, b starts from zero there, as at the first step.

    Args:
        params: as in :class:`Lamb`, like all arguments not named here.
        lr: learning rate η ≥ 0, three to ten times AdamW's; why the default is 0.01 is said there.
        betas: (β2, β3) of the paper, the decay rates of the first and of the second moment, as in every Adam.
        alpha: α of E, |α| < 1/(1-β1); negative explores (the paper's choice for batches of 1K and more, with
            β1 = 0.99), positive exploits (α = 0.5 and β1 = 0.01 below that): ``**paper_defaults(batch_size)`` passes
            both (:func:`thalweg.paper_defaults`).
        beta: β1 of E, the decay rate of the average of the gradient, in [0, 1).
        eps: ε1 > 0.
        trust_eps: ε2 ≥ 0.
        weight_decay: λ ≥ 0.
        trust_ratio: False gives E in front of AdamW; "decayed" adapts what is decayed.
        trust_clip: range of φ.
        ratio_clip: range of the ratio.
        bias_correction: False: m̂ = m and v̂ = v.
        decoupled_decay: True: λ outside of r.
        max_grad_norm: global norm to clip to.
        state_dtype: how the buffers are stored, all or each by its name.
        nonfinite: what to do about infinities and NaNs in the gradients.
        stochastic_rounding: for bfloat16 parameters.
        norm_dims: axes of a layer in a parameter that stacks several.
        maximize: ascend instead of descend.
        foreach: use torch's multi-tensor operations.
        fused: use compiled kernels, on CUDA those of Triton.
        capturable: for CUDA graphs.
        process_group: ranks whose optimizers hold different parameters.

    Raises:
        ValueError: an argument outside its range, named with its value.
        RuntimeError: a sparse gradient.

    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = ALTO(model.parameters(), lr=0.01, alpha=0.5, beta=0.01)
    >>> model(torch.ones(2, 4)).square().mean().backward()
    >>> optimizer.step()
    """

    _buffers = BUFFERS

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        alpha: float = -5.0,
        beta: float = 0.99,
        eps: float = 1e-6,
        trust_eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        trust_ratio: bool | Literal["decayed"] = True,
        trust_clip: tuple[float, float] | None = None,
        ratio_clip: tuple[float, float] | None = None,
        bias_correction: bool = True,
        decoupled_decay: bool = False,
        max_grad_norm: float | None = None,
        state_dtype: StateDtype = None,
        nonfinite: str = "skip",
        stochastic_rounding: bool = False,
        norm_dims: tuple[int, ...] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        self._start(
            params,
            process_group,
            lr=lr,
            betas=betas,
            alpha=alpha,
            beta=beta,
            eps=eps,
            trust_eps=trust_eps,
            weight_decay=weight_decay,
            trust_ratio=trust_ratio,
            trust_clip=trust_clip,
            ratio_clip=ratio_clip,
            bias_correction=bias_correction,
            decoupled_decay=decoupled_decay,
            max_grad_norm=max_grad_norm,
            state_dtype=state_dtype,
            nonfinite=nonfinite,
            stochastic_rounding=stochastic_rounding,
            norm_dims=norm_dims,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            capturable=capturable,
        )
        warn_if_narrow(Filter(group["alpha"], group["beta"], group["betas"][0]) for group in self.param_groups)

    def _check(self, group: dict[str, Any], *, may_wait: bool = True) -> None:
        super()._check(group, may_wait=may_wait)
        check_exploration(group["alpha"], group["beta"])

    def _exploration(self, group: dict[str, Any]) -> tuple[float, float]:
        return group["alpha"], group["beta"]
