"""OrScale: a trust ratio for Muon, by LAMB's author (Lou and You, arXiv 2605.07815, 2026)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from thalweg.lab.contenders.matrices import POLAR_EXPRESS, hidden_layers, polar_factor, rest_of
from thalweg.lab.contenders.parts import Parts

if TYPE_CHECKING:
    from thalweg.lab.contenders.space import Settings


class OrScale(Optimizer):
    """M ← Nesterov momentum, D = λW + sQ with Q the polar factor of M, W ← W - η clip(‖W‖ / (c‖D‖ + 1e-6)) D.

    The denominator is the norm of all that is subtracted, and decay is scaled with it. For language models, as here by
    default, s = 0.2 √max(m, n), and c is such that the ratio is 1 at a layer's first step that is not 0; for vision
    s = c = 1. Stacked matrices have norms of their own.

    Args:
        groups: matrices, and with ``flatten`` convolutions.
        lr: η.
        weight_decay: λ.
        momentum: of Nesterov's.
        calibrated: the form for language models.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float, *, calibrated: bool = True
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "flatten": False}
        super().__init__(groups, {**options, "calibrated": calibrated})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            low, high = (0.1, 5.0) if group["calibrated"] else (0.5, 1.5)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1.0 - group["momentum"])
                update = p.grad.lerp(m, group["momentum"])
                w, update = (x.flatten(1) if group["flatten"] else x for x in (p, update))
                q = polar_factor(update, POLAR_EXPRESS, scale=1.02).to(p.dtype)
                s = 0.2 * math.sqrt(max(q.shape[-2:])) if group["calibrated"] else 1.0
                d = group["weight_decay"] * w + s * q
                w_norm, d_norm = (x.norm(dim=(-2, -1), keepdim=True) for x in (w, d))
                c = torch.ones_like(d_norm)
                if group["calibrated"]:
                    c = state.setdefault("calibration", torch.zeros_like(d_norm))
                    c.copy_(torch.where((c == 0.0) & (d_norm > 0.0), w_norm / d_norm, c))
                ratio = (w_norm / (c * d_norm + 1e-6)).clamp(low, high)
                p.sub_((group["lr"] * ratio * d).reshape(p.shape))


class OrScaleAdamW(Parts):
    """OrScale on hidden layers, AdamW on the rest at the same learning rate, as updates are matched to its size."""

    def __init__(self, model: nn.Module, s: Settings) -> None:
        own = OrScale(hidden_layers(model).groups(), s["lr"], s["weight_decay"], s["momentum"])
        rest = rest_of(model, s["weight_decay"])
        parts = [own, *([AdamW(rest, lr=s["lr"], betas=(s["momentum"], s["beta2"]))] if rest else [])]
        super().__init__(*parts)
