"""DeepOBS's stochastic quadratic as a task, whose public records check the runner; ``quadratic_deep:QuadraticDeep``."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.lab.tasks.base import Budget, Rows, Splits, Task
from thalweg.records.metric import Metric


def _rotation(size: int, rng: np.random.RandomState) -> np.ndarray[Any, Any]:
    """A random rotation, grown a dimension at a time by a Householder reflection (Diaconis, Shahshahani 1987)."""
    angle = 2.0 * np.pi * rng.uniform()
    found = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for d in range(2, size):
        v = rng.normal(size=d + 1)
        x = np.eye(d + 1)[0] - v / np.linalg.norm(v)
        x /= np.linalg.norm(x)
        grown = np.eye(d + 1)
        grown[1:, 1:] = found
        found = grown - 2.0 * np.outer(x, x @ grown)
    return -found


class Quadratic(nn.Module):
    """θ -> ½ (θ - x)ᵀ H (θ - x) for every row x."""

    hessian: Tensor

    def __init__(self, hessian: Tensor) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian)
        self.theta = nn.Parameter(torch.ones(len(hessian)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, d) to (batch,)."""
        away = self.theta - x
        loss: Tensor = 0.5 * (away @ self.hessian * away).sum(1)
        return loss


class QuadraticDeep(Task):
    """A quadratic in 100 dimensions: 90 eigenvalues from [0, 1], 10 from [30, 60], randomly rotated; θ starts at 1.

    DeepOBS drops what is left of 1,000 points after batches of 128, in training and in the test: 7 steps are an epoch,
    896 points the test set. Its public record of SGD at learning rate .015849: test loss 353.446764 at the start,
    105.45, 93.10, 87.52 after epochs 1, 10, 100.
    """

    metric = Metric("test loss", "min", log=True, low=0.0)
    budgets: ClassVar = (Budget(128, 70, 93.1), Budget(128, 700, 88.0, "long"))
    example_cost = 1.0

    def splits(self) -> Splits:
        """1,000, 1,000 and 896 points of N(0, .6²) in 100 dimensions; the validation points are ours."""

        def points(seed: int, count: int = 1000) -> Rows:
            found = np.random.RandomState(seed).normal(0.0, 0.6, (1000, 100)).astype(np.float32)[:count]
            return Rows(torch.from_numpy(found), torch.zeros(count))

        return Splits(points(42), points(44), points(43, 896))

    def model(self) -> nn.Module:
        """θ, and the Hessian as a buffer."""
        rng = np.random.RandomState(42)
        eigenvalues = np.concatenate([rng.uniform(0.0, 1.0, 90), rng.uniform(30.0, 60.0, 10)])
        rotation = _rotation(100, rng)
        return Quadratic(torch.from_numpy(rotation.T @ np.diag(eigenvalues) @ rotation).float())

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """The mean of the quadratic over the batch."""
        loss: Tensor = output.mean()
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """The quadratic of each example."""
        scores: Tensor = output
        return scores
