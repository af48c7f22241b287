"""E in front of torch's Adam, AdamW and SGD, as classes: what ``E.of`` makes, with its types written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim import SGD, Adam, AdamW

from thalweg.optim.adaptor import E

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    class EAdam(E):
        """E in front of :class:`torch.optim.Adam`."""

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 0,
            amsgrad: bool = False,
            *,
            foreach: bool | None = None,
            maximize: bool = False,
            capturable: bool = False,
            differentiable: bool = False,
            fused: bool | None = None,
            decoupled_weight_decay: bool = False,
            alpha: float = -5.0,
            beta: float = 0.99,
            nonfinite: str = "propagate",
            reevaluates: bool | None = None,
            process_group: torch.distributed.ProcessGroup | None = None,
        ) -> None: ...

    class EAdamW(E):
        """E in front of :class:`torch.optim.AdamW`."""

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
            eps: float = 1e-8,
            weight_decay: float = 1e-2,
            amsgrad: bool = False,
            *,
            maximize: bool = False,
            foreach: bool | None = None,
            capturable: bool = False,
            differentiable: bool = False,
            fused: bool | None = None,
            alpha: float = -5.0,
            beta: float = 0.99,
            nonfinite: str = "propagate",
            reevaluates: bool | None = None,
            process_group: torch.distributed.ProcessGroup | None = None,
        ) -> None: ...

    class ESGD(E):
        """E in front of :class:`torch.optim.SGD`."""

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = 1e-3,
            momentum: float = 0,
            dampening: float = 0,
            weight_decay: float | Tensor = 0,
            nesterov: bool = False,
            *,
            maximize: bool = False,
            foreach: bool | None = None,
            differentiable: bool = False,
            fused: bool | None = None,
            alpha: float = -5.0,
            beta: float = 0.99,
            nonfinite: str = "propagate",
            reevaluates: bool | None = None,
            process_group: torch.distributed.ProcessGroup | None = None,
        ) -> None: ...

else:
    EAdam, EAdamW, ESGD = E.of(Adam), E.of(AdamW), E.of(SGD)
