"""E around a base that evaluates the closure itself, within autocast, which keeps the casts of parameters that move."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import E


class SAM(torch.optim.SGD):
    """Sharpness-aware minimization: a step by the gradient at the worst of the neighbourhood."""

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        start = [p.clone() for p in params]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            p.add_(p.grad, alpha=0.5 / norm.item())
        closure()
        for p, at in zip(params, start, strict=True):
            p.copy_(at)
        super().step()
        return loss


BASES = {
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
    "LBFGS of one evaluation": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=1),
    "SAM": lambda params: SAM(params, lr=0.1),
}


@pytest.mark.parametrize("base", BASES)
def test_steps_within_an_outer_autocast_are_those_without_its_cache(base):
    def trained(*, cache, cast=True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        x, y = torch.randn(20, 4), torch.arange(20) % 3
        optimizer = E(BASES[base](model.parameters()), alpha=0.5, beta=0.5, reevaluates=True)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses = []
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast, cache_enabled=cache):
            model(x)  # which autocast keeps the casts of
            for _ in range(3):
                losses.append(optimizer.step(closure).item())
            losses.append(F.cross_entropy(model(x), y).item())
        return losses

    within = trained(cache=True)
    assert within == trained(cache=False)
    assert within != trained(cache=True, cast=False)  # autocast was in effect
    assert within[-1] < within[0]
