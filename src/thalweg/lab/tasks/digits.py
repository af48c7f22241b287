"""Handwritten digits, 8x8 pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.models import VGG, resnet20
from thalweg.lab.tasks.base import Budget, Rows, Splits
from thalweg.lab.tasks.classification import Classification


class MatrixConv(nn.Module):
    """A 3x3 convolution that keeps its kernel as the (out, 9 in) matrix it is, for optimizers that act on matrices."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.shape, self.stride = (outputs, inputs, 3, 3), stride
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (batch, in, h, w) with padding 1."""
        loss: Tensor = F.conv2d(x, self.weight.view(self.shape), stride=self.stride, padding=1)
        return loss


class Residual(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, width), nn.ReLU(), MatrixConv(width, width),
            nn.GroupNorm(4, width), nn.ReLU(), MatrixConv(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) to the same shape."""
        out: Tensor = x + self.body(x)
        return out


class Digits(Classification):
    """Scikit-learn's handwritten digits by a small residual network."""

    name = "digits"
    title = "scikit-learn's 8x8 handwritten digits, residual convolutional network"
    budgets: ClassVar = (Budget(64, 126, 95.0), Budget(1024, 24, 80.0), Budget(1024, 80, 90.0, "long"))
    example_cost = 40.0

    def splits(self) -> Splits:
        """1,197 images to train on, 250 to validate, 350 to test, after one fixed shuffle."""
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        images = torch.from_numpy(data.images).float()[order].unsqueeze(1) / 8.0 - 1.0
        labels = torch.from_numpy(data.target).long()[order]
        bounds = (slice(0, 1197), slice(1197, 1447), slice(1447, 1797))
        return Splits(*(Rows(images[at], labels[at]) for at in bounds))

    def model(self) -> nn.Module:
        """Six convolutions, 8 then 16 channels."""
        return nn.Sequential(
            MatrixConv(1, 8), Residual(8), MatrixConv(8, 16, stride=2), Residual(16),
            nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
        )  # fmt: skip


class DigitsResNet20(Digits):
    """The same digits by the slides' ResNet-20, with one input channel."""

    name = "digits-resnet20"
    title = "scikit-learn's 8x8 handwritten digits, ResNet-20"
    budgets: ClassVar = (Budget(64, 126, 95.0), Budget(1024, 24, 85.0), Budget(1024, 80, 93.0, "long"))
    example_cost = 160.0

    def model(self) -> nn.Module:
        """ResNet-20 as for CIFAR."""
        return resnet20(10, channels=1)


class DigitsVGG(Digits):
    """The same digits by a small VGG with batch normalisation."""

    name = "digits-vgg"
    title = "scikit-learn's 8x8 handwritten digits, small VGG (16, 32, 32 channels, then 64, 64)"
    budgets: ClassVar = (Budget(64, 360, 95.0), Budget(1024, 24, 95.0), Budget(1024, 80, 95.0, "long"))
    example_cost = 60.0

    def model(self) -> nn.Module:
        """Convolutions 1x16, 1x32, 1x32 and fully connected layers of 64, 64, with the paper's dropout of .3."""
        return VGG(((1, 16), (1, 32), (1, 32)), 8, 10, channels=1, hidden=64)
