"""Fashion-MNIST: real images, and enough of them for a batch of 16384."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.lab import hub
from thalweg.lab.models import VGG
from thalweg.lab.tasks.base import Budget, Rows, Splits
from thalweg.lab.tasks.classification import Classification
from thalweg.lab.tasks.digits import MatrixConv
from thalweg.records.errors import UserError

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
VARIABLE = "THALWEG_FASHION_MNIST"
HUB = "zalando-datasets/fashion_mnist"


class FashionMNIST(Classification):
    """Clothes in 28x28 grey pixels, by a network 784-128-64-10.

    The data are gzipped IDX files, as published, in the folder that ``THALWEG_FASHION_MNIST`` names or where Debian's
    package ``dataset-fashion-mnist`` puts them; else :mod:`thalweg.lab.hub` is asked for them.
    """

    name = "fashion-mnist"
    title = "Fashion-MNIST, fully connected network 784-128-64-10"
    budgets: ClassVar = (
        Budget(256, 860, 86.0), Budget(16384, 30, 80.0), Budget(16384, 240, 87.0, "long"),
    )  # fmt: skip
    example_cost = 5.0
    download = f"{HUB} (31 MB), unless Debian's package is installed"
    published_examples = 55_000

    def splits(self) -> Splits:
        """55,000 images to train on, the last 5,000 of the published training set to validate, 10,000 to test."""
        images, labels = _load("train")
        return Splits(Rows(images[:55000], labels[:55000]), Rows(images[55000:], labels[55000:]), Rows(*_load("t10k")))

    def model(self) -> nn.Module:
        """784-128-64-10 with ReLU."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )


class FashionMNISTConv(FashionMNIST):
    """The same clothes by two strided convolutions and two linear layers, which two cores can carry."""

    name = "fashion-mnist-conv"
    title = "Fashion-MNIST, two strided convolutions (8 and 16 channels) and a hidden layer of 128"
    budgets: ClassVar = (Budget(256, 860, 88.0), Budget(16384, 30, 75.0), Budget(16384, 240, 87.0, "long"))
    example_cost = 60.0

    def model(self) -> nn.Module:
        """1-8-16 channels of 28, 14, 7 pixels, then 784-128-10."""
        return nn.Sequential(
            MatrixConv(1, 8, stride=2), nn.ReLU(), MatrixConv(8, 16, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip


class FashionMNISTVGG(FashionMNIST):
    """The same clothes by a VGG of four convolutions with batch normalisation."""

    name = "fashion-mnist-vgg"
    title = "Fashion-MNIST, small VGG (8, 16, 32, 32 channels, then 128, 128) with batch normalisation"
    budgets: ClassVar = (Budget(256, 860, 89.0), Budget(16384, 30, 65.0), Budget(16384, 120, 80.0, "long"))
    example_cost = 350.0

    def model(self) -> nn.Module:
        """Convolutions 1x8, 1x16, 2x32 and fully connected layers of 128, 128, with the paper's dropout of .3."""
        return VGG(((1, 8), (1, 16), (2, 32)), 28, 10, channels=1, hidden=128)


def _load(part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), scaled to [-1, 1], and labels."""
    folder = Path(os.environ.get(VARIABLE, FOLDER))
    paths = [folder / f"{part}-{kind}.gz" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if all(path.is_file() for path in paths):
        images, labels = (_idx(path, header) for path, header in zip(paths, (16, 8), strict=True))
    elif VARIABLE in os.environ:
        raise UserError(
            f"{VARIABLE}={folder} has no {paths[0].name} and {paths[1].name}: name the folder that has them"
        )
    else:
        images, labels = _from_hub("train" if part == "train" else "test")
    return torch.from_numpy(images.reshape(-1, 1, 28, 28)).float() / 127.5 - 1.0, torch.from_numpy(labels).long()


def _idx(path: Path, header: int) -> Any:
    try:
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header).copy()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): download it again") from None


def _from_hub(split: str) -> tuple[Any, Any]:
    try:
        data = hub.images(hub.load(HUB, split, ("image", "label")), "image")
    except UserError as error:
        raise UserError(
            f"fashion-mnist needs its data: apt install dataset-fashion-mnist, or name their folder with "
            f"{VARIABLE}=...; else {error}"
        ) from None
    return np.stack([np.asarray(image, np.uint8) for image in data["image"]]), np.asarray(data["label"])
