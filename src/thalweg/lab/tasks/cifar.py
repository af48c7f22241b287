"""CIFAR-10 and CIFAR-100 by the slides' networks, from the hub or a folder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thalweg.lab import hub
from thalweg.lab.columns import ImageColumn, LabelColumn
from thalweg.lab.models import resnet18_cifar, resnet20, vgg16
from thalweg.lab.tasks.base import Budget, Rows, Splits, held_out
from thalweg.lab.tasks.classification import Classification


class CIFAR(Classification):
    """Colour images of 32x32 pixels, each channel scaled to mean 0 and deviation 1.

    Augmentation is the run's: ``flip-crop`` is what He et al. train with.
    """

    published_examples = 45_000
    data: ClassVar[str]
    labels: ClassVar[str]
    classes: ClassVar[int]
    published: ClassVar[dict[str, tuple[int, ...]]] = {"train": (50_000,), "test": (10_000,)}
    mean: ClassVar[tuple[float, float, float]]
    deviation: ClassVar[tuple[float, float, float]]

    def splits(self) -> Splits:
        """45,000 images to train on, a random 5,000 of the training set to validate, as He et al., 10,000 to test."""
        whole, test = (
            hub.load(
                self.data,
                split,
                {"img": ImageColumn(), self.labels: LabelColumn(self.classes)},
                published=self.published[split],
            )
            for split in ("train", "test")
        )
        hub.same_classes(self.labels, whole, test)
        images, labels = self._read(whole)
        train, validation = held_out(len(labels), max(1, len(labels) // 10))
        return Splits(
            Rows(images[train], labels[train]), Rows(images[validation], labels[validation]), Rows(*self._read(test))
        )

    def example(self) -> tuple[Tensor, Tensor]:
        """Two images."""
        return torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long)

    def _read(self, split: hub.Split) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(split.pictures("img", "RGB", (32, 32)))
        labels = torch.from_numpy(split.labels(self.labels, LabelColumn(self.classes)))
        return scaled(pixels, self.mean, self.deviation), labels


def scaled(pixels: Tensor, mean: Any, deviation: Any) -> Tensor:
    """Bytes (..., height, width, 3) as channels (..., 3, height, width), less this mean, over this deviation."""
    shares = pixels.movedim(-1, -3).float() / 255.0
    shape = (3, 1, 1)
    return (shares - torch.tensor(mean).view(shape)) / torch.tensor(deviation).view(shape)


class CIFAR10ResNet20(CIFAR):
    """CIFAR-10 by ResNet-20 with option A."""

    name = "cifar10-resnet20"
    title = "CIFAR-10, ResNet-20"
    budgets: ClassVar = (
        Budget(128, 7020),
        Budget(16384, 80),
        Budget(128, 70_200, name="long"),
        Budget(16384, 800, name="long"),
    )
    example_cost = 12_000.0
    download = "uoft-cs/cifar10 (144 MB)"
    data, labels, classes = "uoft-cs/cifar10", "label", 10
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def model(self) -> nn.Module:
        """ResNet-20."""
        return resnet20(self.classes)


class CIFAR100ResNet20(CIFAR10ResNet20):
    """CIFAR-100 by ResNet-20 with option A."""

    name = "cifar100-resnet20"
    title = "CIFAR-100, ResNet-20"
    download = "uoft-cs/cifar100 (142 MB)"
    data, labels, classes = "uoft-cs/cifar100", "fine_label", 100
    mean, deviation = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class CIFAR100ResNet18(CIFAR100ResNet20):
    """CIFAR-100 by the ResNet-18 with a stem for small images."""

    name = "cifar100-resnet18"
    title = "CIFAR-100, ResNet-18 with a 3x3 stem"
    budgets: ClassVar = (
        Budget(128, 7020),
        Budget(16384, 80),
        Budget(128, 63_180, name="long"),
        Budget(16384, 360, name="long"),
    )
    example_cost = 170_000.0

    def model(self) -> nn.Module:
        """ResNet-18 for 32x32."""
        return resnet18_cifar(self.classes)


class CIFAR100VGG16(CIFAR100ResNet20):
    """CIFAR-100 by the paper's VGG-16."""

    name = "cifar100-vgg16"
    title = "CIFAR-100, VGG-16"
    budgets: ClassVar = (
        Budget(128, 7020),
        Budget(16384, 80),
        Budget(128, 35_100, name="long"),
        Budget(16384, 200, name="long"),
    )
    example_cost = 120_000.0
    dropout: ClassVar[float] = 0.3

    def model(self) -> nn.Module:
        """VGG-16."""
        return vgg16(self.classes, self.dropout)
