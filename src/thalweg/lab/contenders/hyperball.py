"""Hyperball: matrices that stay on spheres, around any optimizer (Wen et al., arXiv 2606.16899, 2026)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.lab.contenders.matrices import hidden_layers


class Hyperball(Optimizer):
    """W ← R normalise(W - η R normalise(u)) with R = ‖W_0‖ and u what the base subtracts; the rest as the base does.

    The base must not decay these matrices. Stacked matrices have spheres of their own.

    Args:
        base: the optimizer.
        model: its hidden layers are the matrices.
    """

    def __init__(self, base: Optimizer, model: nn.Module) -> None:
        self.base = base
        layers = hidden_layers(model)
        self.axes: dict[nn.Parameter, tuple[int, ...]] = {
            p: tuple(range(p.ndim)) if params is not layers.stacks else (-2, -1) for params in layers for p in params
        }
        super().__init__(base.param_groups, {})
        self.base.param_groups = self.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        self.base.param_groups, self.base.state = self.param_groups, self.state
        before = {p: p.clone() for p in self.axes}
        loss = self.base.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p in before and p.grad is not None:
                    old, axes = before[p], self.axes[p]
                    radius = self.state[p].setdefault("radius", _norm(old, axes))
                    moved = old - group["lr"] * radius * _normalised(old - p, axes)
                    p.copy_(radius * _normalised(moved, axes))
        return loss


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    return norm


def _normalised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return x / _norm(x, axes).clamp(min=torch.finfo(x.dtype).tiny)


def without_decay(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Groups in which hidden layers are not decayed."""
    hidden = {id(p) for params in hidden_layers(model) for p in params}
    found = []
    for group in groups:
        for params, own in (
            ([p for p in group["params"] if id(p) not in hidden], {}),
            ([p for p in group["params"] if id(p) in hidden], {"weight_decay": 0.0}),
        ):
            found += [{**group, "params": params, **own}] if params else []
    return found
