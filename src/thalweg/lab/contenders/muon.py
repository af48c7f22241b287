"""Muon on hidden layers, AdamW on the rest, behind one optimizer.

"Muon" is several updates. This one is torch's: Nesterov momentum, five quintic steps in bfloat16, and a learning rate
times 0.2 √max(rows, columns), at which an update is as large as AdamW's. The rest is AdamW's at that learning rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from thalweg.lab.contenders.matrices import JORDAN, hidden_layers, polar_factor, rest_of
from thalweg.lab.contenders.parts import Parts

if TYPE_CHECKING:
    from thalweg.lab.contenders.space import Settings


class StackedMuon(Optimizer):
    """Torch's Muon for what it refuses: convolutions, flattened to two axes, and stacks of matrices."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "flatten": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1.0 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])
                q = polar_factor(update.flatten(1) if group["flatten"] else update, JORDAN)
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(q.reshape(p.shape), alpha=-group["lr"] * 0.2 * math.sqrt(max(q.shape[-2:])))


class MuonAdamW(Parts):
    """Torch's Muon on hidden matrices, the same on convolutions and stacks, and AdamW on the rest."""

    def __init__(self, model: nn.Module, s: Settings) -> None:
        layers = hidden_layers(model)
        parts: list[Optimizer] = []
        own: dict[str, Any] = {name: s[name] for name in ("lr", "weight_decay", "momentum")}
        if layers.matrices:
            parts.append(torch.optim.Muon(layers.matrices, **own, adjust_lr_fn="match_rms_adamw"))
        if others := layers._replace(matrices=[]).groups():
            parts.append(StackedMuon(others, **own))
        rest = rest_of(model, s["weight_decay"])
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=s["lr"], betas=(s["momentum"], s["beta2"])))
        super().__init__(*parts)
