"""What all tasks that tell classes apart have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.lab.tasks.base import Task
from thalweg.records.metric import Metric

ACCURACY = Metric("test accuracy", "max", unit="%", low=0.0, high=100.0, resolution=100.0)
F1 = Metric("test F1", "max", unit="%", low=0.0, high=100.0)


def logits(output: Any) -> Tensor:
    """Of what a model of transformers says its logits; of any other network what it says."""
    found: Tensor = getattr(output, "logits", output)
    return found


class Classification(Task):
    """Cross-entropy to train with, accuracy to report."""

    metric = ACCURACY
    label_smoothing = 0.0

    def loss(self, output: Any, target: Any) -> Tensor:
        """Cross-entropy."""
        loss: Tensor = F.cross_entropy(logits(output), target, label_smoothing=self.label_smoothing or 0.0)
        return loss

    def score(self, output: Any, target: Any) -> Tensor:
        """100 where the likeliest class is the right one, else 0."""
        scores: Tensor = (logits(output).argmax(1) == target).float() * 100.0
        return scores

    def constant(self, targets: Tensor, like: Tensor) -> Tensor | None:
        """Every example is of the class that most are of; None where a target is no class."""
        if targets.ndim != 1 or targets.is_floating_point():
            return None
        return targets.bincount().float().expand(len(like), -1)


class YesOrNo(Classification):
    """Two classes: accuracy to report, and F1, precision and recall of class 1 beside it."""

    def score(self, output: Any, target: Any) -> Tensor:
        """Predicted and right class of each example, shape (batch, 2)."""
        return torch.stack([logits(output).argmax(1), target], 1)

    def combine(self, scores: Tensor) -> float:
        """Accuracy in percent."""
        return 100.0 * (scores[:, 0] == scores[:, 1]).double().mean().item()

    def more(self, scores: Tensor) -> dict[str, float]:
        """F1, precision and recall of class 1 in percent; 0 where nothing was found or there was nothing to find."""
        predicted, right = scores.bool().unbind(1)
        hits = int((predicted & right).sum())
        found, wanted = int(predicted.sum()), int(right.sum())
        return {
            "F1": 200.0 * hits / max(1, found + wanted),
            "precision": 100.0 * hits / max(1, found),
            "recall": 100.0 * hits / max(1, wanted),
        }


class Tagging(Task):
    """A label of each token in the IOB scheme: F1 of whole spans by seqeval, with precision, recall and accuracy.

    Targets have shape (batch, length), with -100 where a token counts for nothing. The loss is the mean over examples
    of each example's mean over its tokens, so that it does not depend on how a batch is cut.
    """

    metric = F1
    label_smoothing = 0.0
    labels: tuple[str, ...] = ("O",)

    def loss(self, output: Any, target: Any) -> Tensor:
        """Cross-entropy."""
        each = F.cross_entropy(
            logits(output).transpose(1, 2), target, reduction="none", label_smoothing=self.label_smoothing or 0.0
        )
        loss: Tensor = (each.sum(1) / (target != -100).sum(1).clamp(min=1)).mean()
        return loss

    def score(self, output: Any, target: Any) -> Tensor:
        """Predicted and right label of each token, shape (batch, length, 2)."""
        return torch.stack([logits(output).argmax(2), target], 2)

    def constant(self, targets: Tensor, like: Tensor) -> Tensor:
        """Every token has the label that most have."""
        return targets[targets != -100].bincount(minlength=len(self.labels)).float().expand(*like.shape, -1)

    def combine(self, scores: Tensor) -> float:
        """F1 in percent."""
        from seqeval.metrics import f1_score

        predicted, right = self._names(scores)
        return 100.0 * float(f1_score(right, predicted, zero_division=0))

    def more(self, scores: Tensor) -> dict[str, float]:
        """Precision, recall, and the accuracy of single tokens, in percent."""
        from seqeval.metrics import accuracy_score, precision_score, recall_score

        predicted, right = self._names(scores)
        return {
            "precision": 100.0 * float(precision_score(right, predicted, zero_division=0)),
            "recall": 100.0 * float(recall_score(right, predicted, zero_division=0)),
            "accuracy": 100.0 * float(accuracy_score(right, predicted)),
        }

    def _names(self, scores: Tensor) -> tuple[list[list[str]], list[list[str]]]:
        """Names of predicted and of right labels, where tokens count."""
        found: tuple[list[list[str]], list[list[str]]] = [], []
        for example in scores:
            counted = example[example[:, 1] != -100].T.tolist()
            for names, labels in zip(found, counted, strict=True):
                names.append([self.labels[label] for label in labels])
        return found
