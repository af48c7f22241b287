"""VGG (Simonyan, Zisserman 2015, arXiv 1409.1556) with batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from thalweg.lab.models.norm import GlobalBatchNorm2d
from thalweg.lab.models.resnet import conv, he_


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by 2x2 max pooling, and fully connected layers.

    Args:
        stages: how many convolutions of how many channels each has.
        size: height and width of the images.
        classes: outputs.
        channels: of the images.
        hidden: width of the two hidden fully connected layers.
        dropout: after each of them.
    """

    def __init__(
        self,
        stages: Sequence[tuple[int, int]],
        size: int,
        classes: int,
        channels: int = 3,
        *,
        hidden: int = 4096,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, width in stages:
            for _ in range(depth):
                layers += [conv(channels, width, 3), GlobalBatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
            size //= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * size * size, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        he_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (batch, channels, size, size) to logits (batch, classes)."""
        logits: Tensor = self.head(self.features(x))
        return logits


def vgg16(classes: int = 100, dropout: float = 0.3) -> VGG:
    """The paper's VGG-16 for images of 32x32: convolutions 2x96, 2x128, 3x256, 3x512, 3x512, then 4096, 4096.

    The paper's 33.73 M parameters are those with 10 classes; CIFAR-100's 100 make it 34.10 M.
    """
    return VGG(((2, 96), (2, 128), (3, 256), (3, 512), (3, 512)), 32, classes, dropout=dropout)
