"""ImageNet by ResNet-34 and ResNet-50, decoded as it is read."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thalweg.lab import hub
from thalweg.lab.columns import ImageColumn, LabelColumn
from thalweg.lab.models import resnet34, resnet50
from thalweg.lab.tasks.base import Budget, Splits, held_out
from thalweg.lab.tasks.cifar import scaled
from thalweg.lab.tasks.classification import Classification

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """Some images of a published split, each decoded and cut when it is asked for.

    Args:
        split: with the columns ``image`` and ``label``.
        rows: which of them.
        side: of the square that is cut from the middle.
    """

    def __init__(self, split: hub.Split, rows: Tensor, side: int) -> None:
        self.split, self.rows, self.side = split, rows, side
        self.stored = split.values("image")
        self.labels = split.labels("label", LabelColumn(1000))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = int(self.rows[index])
        image = self.split.decoded(row, "image", self.stored[row])
        return scaled(torch.from_numpy(cropped(image, self.side)), MEAN, DEVIATION), int(self.labels[row])

    @property
    def _fingerprint(self) -> str:  # what the task's fingerprint asks for
        rows = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()
        return f"{self.split.data._fingerprint} {rows} {self.side}"


def cropped(image: Any, side: int) -> np.ndarray[Any, Any]:
    """The middle square of an image whose shorter side was scaled to 8/7 of it (256 for 224), or to itself from 256."""
    from PIL import Image

    shorter = max(256, side)
    width, height = image.size
    scale = shorter / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    whole = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return np.array(whole.crop((left, top, left + side, top + side)))


class ImageNet(Classification):
    """1,281,167 photographs of 1,000 kinds.

    Training has the middle 256x256 pixels of each, of which the run's augmentation ``resized-crop-flip`` takes a random
    part, mirrors half of them, and makes 224x224; what is scored is the middle 224x224. Our choice: the published
    validation set is the test set, and 10,000 images of the training set are kept to choose hyperparameters on.
    """

    download = "ILSVRC/imagenet-1k (gated: accept its terms, then hf auth login; 167 GB)"
    published_examples = 1_271_167
    kept: ClassVar[int] = 10_000
    published: ClassVar[dict[str, tuple[int, ...]]] = {"train": (1_281_167,), "validation": (50_000,)}

    def splits(self) -> Splits:
        """1,271,167 images to train on, 10,000 to validate, 50,000 to test."""
        columns = {"image": ImageColumn(), "label": LabelColumn(1000)}
        whole, test = (
            hub.load("ILSVRC/imagenet-1k", split, columns, published=self.published[split])
            for split in ("train", "validation")
        )
        hub.same_classes("label", whole, test)
        train, validation = held_out(len(whole), min(self.kept, len(whole) // 4))
        return Splits(
            DecodedImages(whole, train, 256),
            DecodedImages(whole, validation, 224),
            DecodedImages(test, torch.arange(len(test)), 224),
        )

    def example(self) -> tuple[Tensor, Tensor]:
        """Two images as augmentation cuts them."""
        return torch.zeros(2, 3, 224, 224), torch.zeros(2, dtype=torch.long)


class ImageNetResNet34(ImageNet):
    """ImageNet by ResNet-34."""

    name = "imagenet-resnet34"
    title = "ImageNet, ResNet-34"
    budgets: ClassVar = (
        Budget(256, 49_650),
        Budget(4096, 3100),
        Budget(256, 446_850, name="long"),
        Budget(4096, 27_900, name="long"),
    )
    example_cost = 1_100_000.0

    def model(self) -> nn.Module:
        """ResNet-34."""
        return resnet34()


class ImageNetResNet50(ImageNet):
    """ImageNet by ResNet-50; at the largest batches the lengths are those of LAMB's own runs, 90 epochs."""

    name = "imagenet-resnet50"
    title = "ImageNet, ResNet-50"
    budgets: ClassVar = (
        Budget(1024, 12_410),
        Budget(32768, 380),
        Budget(1024, 111_690, name="long"),
        Budget(32768, 3420, name="long"),
    )
    example_cost = 1_250_000.0

    def model(self) -> nn.Module:
        """ResNet-50."""
        return resnet50()
