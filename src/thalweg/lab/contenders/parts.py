"""Several optimizers, each for its own parameters, behind one that holds groups and state."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Parts(Optimizer):
    """One step of all parts; each has the groups that it was built with, as they are now.

    Args:
        parts: the optimizers, each built already.
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        self.counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = iter(self.param_groups)
        for part, count in zip(self.parts, self.counts, strict=True):
            part.param_groups = [next(groups) for _ in range(count)]
            part.state = self.state
            part.step()
        return loss
