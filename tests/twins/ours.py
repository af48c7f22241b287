"""`Lamb` with the arguments of another library, and how far it is from what that library does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from libraries import Twin
from regimes import LR, Arrays, gradients_of, start_of
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from thalweg import Lamb, lamb_defaults, lamb_schedule


def ours(twin: Twin, regime: str, way: dict[str, Any] | None = None, **moved: Any) -> list[Arrays]:
    """The parameters after each step; ``moved`` are arguments of Lamb that are not to be the library's."""
    options = twin.options_in(regime)
    params = [Parameter(torch.tensor(p)) for p in start_of(regime)]
    optimizer = Lamb(params, lr=LR, **{**lamb_defaults(twin.library, **options), **moved}, **(way or {}))
    schedule = LambdaLR(optimizer, lamb_schedule(twin.library, **options))
    found = []
    for row in gradients_of(regime):
        for p, g in zip(params, row, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        schedule.step()
        found.append([p.detach().numpy().copy() for p in params])
    return found


def difference(found: list[Arrays], expected: list[Arrays]) -> float:
    """The largest of any element at any step, divided by the parameter's largest entry where that is above 1."""
    assert len(found) == len(expected)
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    worst = max(np.abs(a - e).max() / max(1.0, np.abs(e).max()) for a, e in pairs)
    return float("inf") if np.isnan(worst) else float(worst)


def moves_of(twin: Twin) -> list[dict[str, Any]]:
    """Arguments that are not the library's any more: another eps, place of decay (if it shows), correction."""
    its = lamb_defaults(twin.library, **twin.options)
    moves: list[dict[str, Any]] = [{"eps": 10.0 * its["eps"]}, {"bias_correction": not its["bias_correction"]}]
    if twin.decay is not None and its["trust_ratio"] is not False:
        moves.append({"decoupled_decay": not its["decoupled_decay"]})
    return moves
