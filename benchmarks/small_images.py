"""Small images for small measurements: a part of Fashion-MNIST, if this machine has it, else scikit-learn's digits."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FOLDER = Path("/usr/share/datasets/fashion-mnist")
WHERE = f"put its four gzipped IDX files into {FOLDER} (Debian: apt-get install dataset-fashion-mnist)"


class Part(NamedTuple):
    """Images, one a row, and their classes."""

    images: Tensor
    labels: Tensor


class Images(NamedTuple):
    """What is trained on, what chooses the learning rate, what is reported."""

    name: str
    train: Part
    validation: Part
    test: Part

    @property
    def pixels(self) -> int:
        """Of an image."""
        return self.train.images.shape[1]


def load(name: str) -> Images:
    """The data of this name; "auto" prefers Fashion-MNIST and says so where it has to do without."""
    if name == "auto":
        name = "fashion" if FOLDER.is_dir() else "digits"
        if name == "digits":
            print(f"Fashion-MNIST is not here, so these are scikit-learn's digits; for Fashion-MNIST {WHERE}")
    return _fashion() if name == "fashion" else _digits()


def _fashion() -> Images:
    """4,096 images for training and 4,096 for validation, all 10,000 for testing, averaged to 14 x 14 pixels."""
    if not FOLDER.is_dir():
        raise SystemExit(f"error: Fashion-MNIST is not here: {WHERE}, or pass --data digits")
    x, y = _idx("train-images-idx3"), _idx("train-labels-idx1")
    test = Part(_pooled(_idx("t10k-images-idx3")), _idx("t10k-labels-idx1").long())
    return Images("fashion", _part(_pooled(x[:4096]), y[:4096]), _part(_pooled(x[4096:8192]), y[4096:8192]), test)


def _idx(name: str) -> Tensor:
    raw = gzip.decompress((FOLDER / f"{name}-ubyte.gz").read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, 4).astype(int)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def _pooled(images: Tensor) -> Tensor:
    return F.avg_pool2d(images[:, None].float() / 255.0, 2).flatten(1) - 0.5


def _digits() -> Images:
    """1,797 images of 8 x 8 pixels: 1,024 for training, 256 for validation, 517 for testing."""
    from sklearn.datasets import load_digits

    x, y = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order].float() / 16.0 - 0.5, y[order].long()
    return Images("digits", _part(x[:1024], y[:1024]), _part(x[1024:1280], y[1024:1280]), _part(x[1280:], y[1280:]))


def _part(images: Tensor, labels: Tensor) -> Part:
    return Part(images, labels.long())
