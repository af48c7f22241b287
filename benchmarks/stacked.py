"""The same small network for several seeds, all trained at once."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHANCE = (math.log(10.0), 10.0)
"""Loss, and accuracy in per cent, of guessing one of ten classes."""


class Networks(nn.Module):
    """One fully connected network for each seed, with torch's own initialisation of linear layers.

    Args:
        widths: of input, hidden layers and output.
        seeds: of the initial weights.
        activation: between layers.
    """

    def __init__(
        self, widths: tuple[int, ...], seeds: tuple[int, ...], activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.seeds = seeds
        self.activation = activation
        shapes = [shape for pair in pairwise(widths) for shape in (pair, (1, pair[1]))]
        bounds = [width**-0.5 for width in widths[:-1] for _ in range(2)]
        drawn = [
            [torch.empty(shape).uniform_(-b, b, generator=g) for shape, b in zip(shapes, bounds, strict=True)]
            for g in (torch.Generator().manual_seed(seed) for seed in seeds)
        ]
        self.layers = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn, strict=True)])

    def forward(self, images: Tensor) -> Tensor:
        """Outputs, (seeds, batch, classes), of images (seeds or 1, batch, pixels)."""
        x = images.expand(len(self.seeds), -1, -1)
        *hidden, last_weight, last_bias = self.layers
        for weight, bias in zip(hidden[::2], hidden[1::2], strict=True):
            x = self.activation(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(last_bias, x, last_weight)

    def cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of each seed; labels (seeds or 1, batch)."""
        logits = self(images).transpose(1, 2)
        return F.cross_entropy(logits, labels.expand(len(self.seeds), -1), reduction="none").mean(1)

    @torch.no_grad()
    def judge(self, images: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
        """Loss and accuracy in per cent, of each seed; a diverged one has those of guessing."""
        losses = self.cross_entropy(images[None], labels[None]).tolist()
        accuracies = (100.0 * (self(images[None]).argmax(2) == labels).float().mean(1)).tolist()
        pairs = [(x, a) if math.isfinite(x) else CHANCE for x, a in zip(losses, accuracies, strict=True)]
        return [loss for loss, _ in pairs], [accuracy for _, accuracy in pairs]


class Sharpness:
    """The largest eigenvalue of the Hessian of each seed's loss, by power iteration from where it last ended."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params = params
        generator = torch.Generator().manual_seed(0)
        self.vectors = [torch.randn(p.shape, generator=generator) for p in params]

    def __call__(self, losses: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """λ_max and ‖∇L‖² of each seed, from the losses with their graph."""
        gradients = torch.autograd.grad(losses.sum(), self.params, create_graph=True)
        for _ in range(iterations):
            norms = _dot(self.vectors, self.vectors).sqrt()
            self.vectors = [v / norms.view(-1, 1, 1) for v in self.vectors]
            images = torch.autograd.grad(gradients, self.params, self.vectors, retain_graph=True)
            values = _dot(self.vectors, images)
            self.vectors = [image.detach() for image in images]
        return values, _dot([g.detach() for g in gradients], [g.detach() for g in gradients])


def _dot(a: list[Tensor] | tuple[Tensor, ...], b: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Of the vectors of each seed."""
    return torch.stack([(x * y).sum((1, 2)) for x, y in zip(a, b, strict=True)]).sum(0)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half-width of the 95 % confidence interval by Student's t; infinite for a single value."""
    if len(values) == 1:
        return values[0], math.inf
    return mean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
