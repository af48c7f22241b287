"""CIFAR and ImageNet by the slides' networks, from the hub or a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thalweg.lab import hub, streams
from thalweg.lab.models import resnet18_cifar, resnet20, resnet34, resnet50, vgg16
from thalweg.lab.split import IMAGE, Classes, Kind
from thalweg.lab.tasks.base import Rows, Splits, Stream, held_out, short_and_long
from thalweg.lab.tasks.classification import Classification

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PublishedImages(Classification):
    """Colour images, each channel scaled to mean 0 and deviation 1.

    ``published`` has the rows of the split to train on and of that to test on, in this order; of the first some rows
    are held out to choose hyperparameters on.
    """

    data: ClassVar[str]
    images: ClassVar[str]
    labels: ClassVar[str]
    classes: ClassVar[int]
    published: ClassVar[dict[str, tuple[int, ...]]]
    side: ClassVar[int]
    network: ClassVar[Callable[..., nn.Module]]

    def model(self) -> nn.Module:
        """The slides' network."""
        return self.network(self.classes)

    def both(self) -> list[hub.Split]:
        """The two published splits."""
        columns: dict[str, Kind] = {self.images: IMAGE, self.labels: Classes(self.classes)}
        found = [hub.load(self.data, split, columns, published=rows) for split, rows in self.published.items()]
        hub.same_classes(self.labels, *found)
        return found

    def example(self) -> tuple[Tensor, Tensor]:
        """Two images, as augmentation leaves them."""
        return torch.zeros(2, 3, self.side, self.side), torch.zeros(2, dtype=torch.long)


def scaled(pixels: Tensor, mean: Any, deviation: Any) -> Tensor:
    """Bytes (..., height, width, 3) as channels (..., 3, height, width), less this mean, over this deviation."""
    shares = pixels.movedim(-1, -3).float() / 255.0
    shape = (3, 1, 1)
    return (shares - torch.tensor(mean).view(shape)) / torch.tensor(deviation).view(shape)


class CIFAR(PublishedImages):
    """Images of 32x32 pixels. Augmentation is the run's: ``flip-crop`` is what He et al. train with."""

    published_examples = 45_000
    images, side = "img", 32
    published: ClassVar = {"train": (50_000,), "test": (10_000,)}
    mean: ClassVar[tuple[float, float, float]]
    deviation: ClassVar[tuple[float, float, float]]

    def splits(self) -> Splits:
        """45,000 images to train on, a random 5,000 of the training set to validate, as He et al., 10,000 to test."""
        (images, labels), test = map(self._read, self.both())
        train, validation = held_out(len(labels), max(1, len(labels) // 10))
        return Splits(Rows(images[train], labels[train]), Rows(images[validation], labels[validation]), Rows(*test))

    def _read(self, split: hub.Split) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(split.pictures(self.images, "RGB", (32, 32)))
        labels = torch.from_numpy(split.labels(self.labels, Classes(self.classes)))
        return scaled(pixels, self.mean, self.deviation), labels


class CIFAR10ResNet20(CIFAR):
    """CIFAR-10 by ResNet-20 with option A."""

    name = "cifar10-resnet20"
    title = "CIFAR-10, ResNet-20"
    budgets: ClassVar = short_and_long({128: (7020, 70_200), 16384: (80, 800)})
    example_cost = 12_000.0
    download = "uoft-cs/cifar10 (144 MB)"
    data, labels, classes = "uoft-cs/cifar10", "label", 10
    network: ClassVar[Callable[..., nn.Module]] = staticmethod(resnet20)
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


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
    budgets: ClassVar = short_and_long({128: (7020, 63_180), 16384: (80, 360)})
    example_cost = 170_000.0
    network = staticmethod(resnet18_cifar)


class CIFAR100VGG16(CIFAR100ResNet20):
    """CIFAR-100 by the paper's VGG-16."""

    name = "cifar100-vgg16"
    title = "CIFAR-100, VGG-16"
    budgets: ClassVar = short_and_long({128: (7020, 35_100), 16384: (80, 200)})
    example_cost = 120_000.0
    dropout: ClassVar[float] = 0.3

    def model(self) -> nn.Module:
        """VGG-16."""
        return vgg16(self.classes, self.dropout)


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
        self.labels = split.labels("label", Classes(1000))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = int(self.rows[index])
        return decoded(self.split, row, self.stored[row], self.side), int(self.labels[row])

    @property
    def _fingerprint(self) -> str:  # what the task's fingerprint asks for
        rows = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()
        return f"{self.split.data._fingerprint} {rows} {self.side}"


def decoded(split: hub.Split, row: int, stored: Any, side: int) -> Tensor:
    """An image as it is stored in a row of a split, cut and scaled, shape (3, side, side)."""
    image = split.decoded(row, "image", stored)
    return scaled(torch.from_numpy(cropped(image, side)), IMAGENET_MEAN, IMAGENET_DEVIATION)


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


class ImageNet(PublishedImages):
    """1,281,167 photographs of 1,000 kinds.

    Training has the middle 256x256 pixels of each, of which the run's augmentation ``resized-crop-flip`` takes a random
    part, mirrors half of them, and makes 224x224; what is scored is the middle 224x224. Our choice: the published
    validation set is the test set, and 10,000 images of the training set are kept to choose hyperparameters on.
    """

    download = "ILSVRC/imagenet-1k (gated: accept its terms, then hf auth login; 167 GB)"
    published_examples = 1_271_167
    data, images, labels, classes, side = "ILSVRC/imagenet-1k", "image", "label", 1000, 224
    published: ClassVar = {"train": (1_281_167,), "validation": (50_000,)}
    kept: ClassVar[int] = 10_000

    def splits(self) -> Splits:
        """1,271,167 images to train on, 10,000 to validate, 50,000 to test."""
        whole, test = self.both()
        train, validation = held_out(len(whole), min(self.kept, len(whole) // 4))
        every = torch.arange(len(test))
        return Splits(
            DecodedImages(whole, train, 256), DecodedImages(whole, validation, 224), DecodedImages(test, every, 224)
        )

    def stream(self) -> Splits:
        """All files of the training set but the last ones, of which up to 10,000 images validate; 50,000 to test."""
        columns: dict[str, Kind] = {self.images: IMAGE, self.labels: Classes(self.classes)}
        found = streams.stream(self.data, "train", columns)
        test = hub.load(self.data, "validation", columns, published=self.published["validation"])
        hub.same_classes(self.labels, found.held, test)

        def example(row: dict[str, Any]) -> tuple[Tensor, int]:
            found.check({name: [value] for name, value in row.items()})
            return decoded(found, 0, row[self.images], 256), row[self.labels]

        validation = torch.arange(min(self.kept, len(found.held)))
        return Splits(
            Stream(found.data, example, found.place, found.identity),
            DecodedImages(found.held, validation, 224), DecodedImages(test, torch.arange(len(test)), 224),
        )  # fmt: skip


class ImageNetResNet34(ImageNet):
    """ImageNet by ResNet-34."""

    name = "imagenet-resnet34"
    title = "ImageNet, ResNet-34"
    budgets: ClassVar = short_and_long({256: (49_650, 446_850), 4096: (3100, 27_900)})
    example_cost = 1_100_000.0
    network = staticmethod(resnet34)


class ImageNetResNet50(ImageNet):
    """ImageNet by ResNet-50; at the largest batches the lengths are those of LAMB's own runs, 90 epochs."""

    name = "imagenet-resnet50"
    title = "ImageNet, ResNet-50"
    budgets: ClassVar = short_and_long({1024: (12_410, 111_690), 32768: (380, 3420)})
    example_cost = 1_250_000.0
    network = staticmethod(resnet50)
