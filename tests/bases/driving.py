"""How the tests drive a base, alone and with E: prescribed gradients in which E's arithmetic has no rounding.

At step k the loss is v_k + G_k·(θ-θ_k) + ½κ‖θ-θ_k‖² with θ_k the parameters as the step begins. So the gradient at θ_k
is G_k whatever the base has done before, its Hessian is κ, and a base that looks elsewhere (SAM, LBFGS) sees a convex
function. The entries of G_k are multiples of 1/8 below 8, α = 2 and β1 = 3/4, so that g' = g + α a is exact in float32,
in the paper's two buffers as in E's one: what the base makes of it must agree bit for bit.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from naive import NaiveE
from torch import Tensor
from torch.nn import Parameter

from thalweg import E

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from catalogue import Base
    from torch.optim import Optimizer

ALPHA, BETA = 2.0, 0.75
CURVATURE = 0.5
STEPS = 6

Rows = list[list[Tensor]]


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def start(base: Base, seed: int = 0) -> list[Parameter]:
    """The parameters, multiples of 1/16 in (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randint(-15, 16, shape, generator=generator) / 16) for shape in base.shapes]


def gradients(base: Base, steps: int = STEPS, seed: int = 1) -> Rows:
    """Odd multiples of 1/8, so never zero: a direction common to all steps, and noise."""
    generator = torch.Generator().manual_seed(seed)
    common = [2 * torch.randint(-16, 16, shape, generator=generator) + 1 for shape in base.shapes]
    return [[(g + 2 * torch.randint(-14, 15, g.shape, generator=generator)) / 8 for g in common] for _ in range(steps)]


def shifts(rows: Rows, alpha: float = ALPHA, beta: float = BETA) -> Rows:
    """α a_k of the paper's two-buffer recursion, in float64, which float32 holds exactly."""
    rules = [NaiveE(alpha, beta) for _ in rows[0]]
    wide = [[rule(g.double()) - g.double() for rule, g in zip(rules, row, strict=True)] for row in rows]
    narrow = [[s.float() for s in row] for row in wide]
    assert all(torch.equal(s.double(), w) for a, b in zip(narrow, wide, strict=True) for s, w in zip(a, b, strict=True))
    return narrow


def value(k: int) -> float:
    """The loss at θ_k."""
    return 2.0 - k / 8


def drive(
    base: Base,
    optimizer: Optimizer,
    params: Sequence[Parameter],
    rows: Rows,
    shifted: Rows | None = None,
    first: int = 0,
) -> list[Any]:
    """One step for each row of gradients, by itself or with the given shifts added by hand; what ``step`` returned."""
    losses = []
    for k, row in enumerate(rows, start=first):
        seed_everything(k)
        centers = [p.detach().clone() for p in params]
        by_hand = shifted[k - first] if shifted is not None else None

        def closure(
            k: int = k, row: list[Tensor] = row, centers: list[Tensor] = centers, by_hand: list[Tensor] | None = by_hand
        ) -> Tensor:
            moved = [p - c for p, c in zip(params, centers, strict=True)]
            loss = value(k) + sum((m * g).sum() for m, g in zip(moved, row, strict=True))
            loss = loss + 0.5 * CURVATURE * sum(m.square().sum() for m in moved)
            for p in params:
                p.grad = None
            loss.backward(create_graph=base.create_graph)
            loss = loss.detach()
            if by_hand is not None:
                for p, s in zip(params, by_hand, strict=True):
                    p.grad = p.grad + s
                for m, s in zip(moved, by_hand, strict=True):
                    loss = loss + (m.detach() * s).sum()
            return loss

        losses.append(take_step(base, optimizer, closure))
    return losses


def take_step(base: Base, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
    """As its documentation says that the base is used."""
    if not base.closure:
        loss = closure()
        optimizer.step()
        return loss
    if isinstance(optimizer, E) or not (base.needs_gradients or base.loss_only):
        return optimizer.step(closure)
    loss = closure()
    return optimizer.step((lambda: loss) if base.loss_only else closure)


def make(base: Base, params: list[Parameter], **overrides: Any) -> Optimizer:
    """The base, ready to train."""
    seed_everything(99)
    return ready(base, base.build(params, **{**base.kwargs, **overrides}))


def wrap(base: Base, params: list[Parameter], alpha: float = ALPHA, beta: float = BETA, **overrides: Any) -> E:
    """E around the base, ready to train."""
    seed_everything(99)
    inner = base.build(params, **{**base.kwargs, **overrides})
    return ready(base, E(inner, alpha, beta, reevaluates=True if base.closure else None))


def ready(base: Base, optimizer: Any) -> Any:
    if base.modes:
        optimizer.train()
    return optimizer
