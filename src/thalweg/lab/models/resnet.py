"""Residual networks (He, Zhang, Ren, Sun 2016, arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.models.norm import GlobalBatchNorm2d

Shortcut: TypeAlias = Callable[[int, int, int], nn.Module]


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of ``size`` x ``size`` that keeps the image's size, but for its stride; a norm follows: no bias."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class PaddedShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the new channels. It has no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, outputs, h / stride, w / stride)."""
        before = self.new // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution, normalised, wherever the shape changes."""
    return nn.Sequential(conv(inputs, outputs, 1, stride), GlobalBatchNorm2d(outputs))


class Basic(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, width, 3, stride), GlobalBatchNorm2d(width), nn.ReLU(inplace=True),
            conv(width, width, 3), GlobalBatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = nn.Identity() if (inputs, stride) == (width, 1) else shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, width, h / stride, w / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut; the stride is the 3x3's, as in torchvision."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            conv(inputs, width, 1), GlobalBatchNorm2d(width), nn.ReLU(inplace=True),
            conv(width, width, 3, stride), GlobalBatchNorm2d(width), nn.ReLU(inplace=True),
            conv(width, outputs, 1), GlobalBatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, h, w) to (batch, 4 width, h / stride, w / stride)."""
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Stages of blocks; each stage after the first halves the image and doubles the width.

    Args:
        block: what the stages are made of.
        depths: blocks of each stage.
        width: channels of the first stage.
        classes: outputs.
        channels: of the images.
        small: the stem for images of 32x32 and less, a 3x3 convolution; else 7x7 with stride 2, and max pooling.
        shortcut: where the shape changes, option A or B of the paper.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        depths: Sequence[int],
        width: int,
        classes: int,
        channels: int = 3,
        *,
        small: bool,
        shortcut: Shortcut = projection,
    ) -> None:
        super().__init__()
        first = conv(channels, width, 3) if small else conv(channels, width, 7, 2)
        self.stem = nn.Sequential(first, GlobalBatchNorm2d(width), nn.ReLU(inplace=True))
        if not small:
            self.stem.append(nn.MaxPool2d(3, 2, 1))
        inputs, stages = width, []
        for k, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                blocks.append(block(inputs, width << k, 2 if k and not i else 1, shortcut))
                inputs = (width << k) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, h, w) to logits (batch, classes)."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def he_(model: nn.Module) -> None:
    """He's initialisation of all convolutions: variance 2 / (outputs · size²); linear layers keep torch's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet20(classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-20 for CIFAR, with option A as the paper's: .27 M parameters."""
    return ResNet(Basic, (3, 3, 3), 16, classes, channels, small=True, shortcut=PaddedShortcut)


_imagenet = partial(ResNet, width=64, small=False)


def resnet18(classes: int = 1000) -> ResNet:
    """ResNet-18 for ImageNet: 11.7 M parameters."""
    return _imagenet(Basic, (2, 2, 2, 2), classes=classes)


def resnet34(classes: int = 1000) -> ResNet:
    """ResNet-34 for ImageNet: 21.8 M parameters."""
    return _imagenet(Basic, (3, 4, 6, 3), classes=classes)


def resnet50(classes: int = 1000) -> ResNet:
    """ResNet-50 for ImageNet: 25.6 M parameters."""
    return _imagenet(Bottleneck, (3, 4, 6, 3), classes=classes)


def resnet18_cifar(classes: int = 100) -> ResNet:
    """ResNet-18 with the stem for images of 32x32, as papers on CIFAR-100 use it: 11.2 M parameters."""
    return ResNet(Basic, (2, 2, 2, 2), 64, classes, small=True)
