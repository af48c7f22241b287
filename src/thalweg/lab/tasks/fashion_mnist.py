"""Fashion-MNIST: real images, and enough of them for a batch of 16384."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.lab.errors import UserError
from thalweg.lab.metric import Metric
from thalweg.lab.tasks.base import Budget, Rows, Splits, Task

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
VARIABLE = "THALWEG_FASHION_MNIST"
HUB = "zalando-datasets/fashion_mnist"


class FashionMNIST(Task):
    """Clothes in 28x28 grey pixels, by a network 784-128-64-10.

    The data are gzipped IDX files, as published, in the folder that ``THALWEG_FASHION_MNIST`` names or where Debian's
    package ``dataset-fashion-mnist`` puts them; else the ``datasets`` library is asked for them.
    """

    name = "fashion-mnist"
    title = "Fashion-MNIST, fully connected network 784-128-64-10"
    metric = Metric("test accuracy", "max", unit="%", low=0.0, high=100.0)
    budgets: ClassVar = (
        Budget(256, 860, 86.0), Budget(16384, 30, 80.0), Budget(16384, 240, 87.0, "long"),
    )  # fmt: skip
    label_smoothing = 0.0
    example_cost = 5.0

    def splits(self) -> Splits:
        """55,000 images to train on, the last 5,000 of the published training set to validate, 10,000 to test."""
        images, labels = _load("train")
        return Splits(Rows(images[:55000], labels[:55000]), Rows(images[55000:], labels[55000:]), Rows(*_load("t10k")))

    def model(self) -> nn.Module:
        """784-128-64-10 with ReLU."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Cross-entropy."""
        loss: Tensor = F.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        return loss

    def score(self, output: Any, target: Tensor) -> Tensor:
        """100 where the likeliest class is the right one, else 0."""
        scores: Tensor = (output.argmax(1) == target).float() * 100.0
        return scores


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
    wanted = (
        "fashion-mnist needs its data: `apt install dataset-fashion-mnist`, or `pip install datasets` to take it from "
        f"the hub, or name its folder with {VARIABLE}=..."
    )
    try:
        import datasets
    except ImportError:
        raise UserError(wanted) from None
    try:
        data = datasets.load_dataset(HUB, split=split)
    except Exception as error:
        raise UserError(f"{wanted} (the hub: {error})") from None
    return np.stack([np.asarray(image, np.uint8) for image in data["image"]]), np.asarray(data["label"])
