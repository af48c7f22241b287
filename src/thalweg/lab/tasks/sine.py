"""The slides' toy: a sine."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.tasks.base import Budget, Rows, Splits, Task
from thalweg.records.metric import Metric


class Sine(Task):
    """Y = sin(x) by a network of three layers."""

    name = "sine"
    title = "y = sin(x), 3-layer network of width 32"
    metric = Metric("test mean squared error", "min", log=True, low=0.0)
    budgets: ClassVar = (Budget(256, 400, 1e-3), Budget(32768, 30, 7e-2), Budget(32768, 200, 1e-3, "long"))
    example_cost = 0.5

    def splits(self) -> Splits:
        """69,632 evenly spaced points of [-2π, 2π]: a random 65,536 to train on, 2,048 each to validate and test."""
        x = torch.linspace(-2.0 * math.pi, 2.0 * math.pi, 69632).unsqueeze(1)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        return Splits(*(Rows(x[part], x[part].sin()) for part in torch.split(order, [65536, 2048, 2048])))

    def model(self) -> nn.Module:
        """1-32-32-1 with tanh."""
        return nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Mean squared error."""
        loss: Tensor = F.mse_loss(output, target)
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """Squared error."""
        scores: Tensor = (output - target).square().flatten(1).mean(1)
        return scores

    def constant(self, targets: Tensor, like: Tensor) -> Tensor:
        """The mean."""
        return targets.mean(0).expand_as(like)


class NoisySine(Sine):
    """The slides' setting: x in [-10, 10], 32,768 training points of 40,960, noise of mean zero.

    How large the noise is the slides do not say: .1, on the training targets alone, is our choice.
    """

    name = "sine-noisy"
    title = "y = sin(x) + noise on [-10, 10], 3-layer network of width 32"
    budgets: ClassVar = (Budget(256, 2560, 1e-2), Budget(32768, 200, 1e-1), Budget(32768, 2000, 1e-2, "long"))

    def splits(self) -> Splits:
        """40,960 points drawn uniformly: 32,768 to train on, 4,096 each to validate and to test."""
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(40960, 1, generator=generator) * 20.0 - 10.0
        y = x.sin()
        y[:32768] += 0.1 * torch.randn(32768, 1, generator=generator)
        bounds = (slice(0, 32768), slice(32768, 36864), slice(36864, 40960))
        return Splits(*(Rows(x[at], y[at]) for at in bounds))
