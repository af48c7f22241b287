"""What all tasks that tell classes apart have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from thalweg.lab.metric import Metric
from thalweg.lab.tasks.base import Task

ACCURACY = Metric("test accuracy", "max", unit="%", low=0.0, high=100.0)


class Classification(Task):
    """Cross-entropy to train with, accuracy to report."""

    metric = ACCURACY
    label_smoothing = 0.0

    def loss(self, output: Any, target: Any) -> Tensor:
        """Cross-entropy."""
        loss: Tensor = F.cross_entropy(output, target, label_smoothing=self.label_smoothing or 0.0)
        return loss

    def score(self, output: Any, target: Any) -> Tensor:
        """100 where the likeliest class is the right one, else 0."""
        scores: Tensor = (output.argmax(1) == target).float() * 100.0
        return scores
