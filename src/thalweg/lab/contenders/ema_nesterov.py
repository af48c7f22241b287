"""EMA-Nesterov: look ahead along the average of the parameters' moves (arXiv 2605.25395)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class EMANesterov(Optimizer):
    """A wrapper that takes gradients at θ + α d, d being the EMA of the moves of θ; to first order E with α > 0.

    While training the parameters hold the point ahead; :meth:`eval` puts θ there, :meth:`train` goes ahead again.

        d_k = β d_{k-1} + (1-β)(θ_k - θ_{k-1})
    """

    def __init__(self, base: Optimizer, alpha: float, beta: float) -> None:
        if not (alpha >= 0.0 and 0.0 <= beta < 1.0):
            raise ValueError(f"alpha must be at least 0 and beta in [0, 1), got {alpha} and {beta}")
        self.base, self.alpha, self.beta = base, alpha, beta
        self.is_ahead = True
        super().__init__(base.param_groups, {})
        self.base.param_groups = self.param_groups

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def _shift(self, sign: float) -> None:
        for p in self._parameters():
            if "ahead" in self.state[p]:
                p.add_(self.state[p]["ahead"], alpha=sign * self.alpha)

    def eval(self) -> None:
        """Put θ into the parameters."""
        if self.is_ahead:
            self._shift(-1.0)
            self.is_ahead = False

    def train(self) -> None:
        """Put the point ahead into the parameters."""
        if not self.is_ahead:
            self._shift(1.0)
            self.is_ahead = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the base from θ, with the gradient of the point ahead."""
        self.train()
        self.base.param_groups = self.param_groups
        self._shift(-1.0)
        before = [p.clone() for p in self._parameters()]
        self.base.state = self.state
        loss = self.base.step(closure)
        for p, old in zip(self._parameters(), before, strict=True):
            ahead = self.state[p].setdefault("ahead", torch.zeros_like(p))
            ahead.lerp_(p - old, 1.0 - self.beta)
        self._shift(1.0)
        return loss
