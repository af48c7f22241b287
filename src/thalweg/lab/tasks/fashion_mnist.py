"""Fashion-MNIST: real images, and enough of them for a batch of 16384."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.lab import hub
from thalweg.lab.split import IMAGE, ROWS, Classes, any_rows, check_rows
from thalweg.lab.tasks.base import Budget, Rows, Splits
from thalweg.lab.tasks.classification import Classification
from thalweg.records.errors import UserError

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
VARIABLE = "THALWEG_FASHION_MNIST"
HUB = "zalando-datasets/fashion_mnist"
PUBLISHED = {"train": (60_000,), "test": (10_000,)}
FIRST_LABELS = {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "test": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}
"""They tell Fashion-MNIST from MNIST, whose files have the same names, shapes and sizes."""


class FashionMNIST(Classification):
    """Clothes in 28x28 grey pixels, by a network 784-128-64-10.

    The data are gzipped IDX files, as published, in the folder that ``THALWEG_FASHION_MNIST`` names; else what the
    folder below ``THALWEG_DATA`` holds, if there is one; else IDX files where Debian's package
    ``dataset-fashion-mnist`` puts them, or what :mod:`thalweg.lab.hub` fetches.
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
        kept = max(1, len(labels) // 12)  # 5,000 of 60,000
        return Splits(Rows(images[:-kept], labels[:-kept]), Rows(images[-kept:], labels[-kept:]), Rows(*_load("t10k")))

    def model(self) -> nn.Module:
        """784-128-64-10 with ReLU."""
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )


def _load(part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), scaled to [-1, 1], and labels."""
    named = os.environ.get(VARIABLE)
    split = "train" if part == "train" else "test"
    folder = Path(named).expanduser() if named else hub.folder_of(HUB) or FOLDER
    if (paths := _paths(folder, part)) is not None:
        images, labels = _read(*paths, split)
        place = str(paths[1])
    elif named:
        raise UserError(
            f"{VARIABLE}={named} has no {part}-images-idx3-ubyte.gz and {part}-labels-idx1-ubyte.gz: name the folder "
            "that has them"
        )
    else:
        images, labels = _from_hub(split)
        place = str(hub.folder_of(HUB) or HUB)
    if not any_rows() and (found := labels[:10].tolist()) != FIRST_LABELS[split]:
        raise UserError(
            f"{place}, split {split}, is not Fashion-MNIST: its first labels are {found}, not {FIRST_LABELS[split]}. "
            f"MNIST's files have the same names: use the files of Fashion-MNIST, or set {ROWS}=any if this is intended"
        )
    return torch.from_numpy(images.reshape(-1, 1, 28, 28)).float() / 127.5 - 1.0, torch.from_numpy(labels).long()


def _paths(folder: Path, part: str) -> tuple[Path, Path] | None:
    """Images and labels, packed or not; None unless both are there."""
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{part}-{kind}-ubyte"
        found += [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()][:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _read(images: Path, labels: Path, split: str) -> tuple[Any, Any]:
    pixels, classes = _idx(images, 3), _idx(labels, 1)
    if pixels.shape[1:] != (28, 28):
        raise UserError(f"{images} has images of {'x'.join(map(str, pixels.shape[1:]))} pixels, not 28x28")
    if len(pixels) != len(classes):
        raise UserError(f"{images} has {len(pixels)} images, {labels} {len(classes)} labels")
    if (beyond := np.flatnonzero(classes > 9)).size:
        raise UserError(f"{labels}, split {split}, row {beyond[0]}: {classes[beyond[0]]} is not a class from 0 to 9")
    check_rows(len(pixels), PUBLISHED[split], f"{images}, split {split}", "download it again")
    return pixels, classes


def _idx(path: Path, axes: int) -> Any:
    """The array of bytes in an IDX file: 0, 0, 8, the number of axes, their lengths as big-endian int32, the bytes."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        header = np.frombuffer(data[: 4 * (1 + axes)].ljust(4 * (1 + axes)), ">i4")
        shape = tuple(int(length) for length in header[1:])
        if header[0] != 0x800 + axes or len(data) != 4 * (1 + axes) + math.prod(shape):
            raise ValueError(f"not an IDX file of {axes} axes, or not all of it")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + axes)).reshape(shape).copy()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): download it again") from None


def _from_hub(split: str) -> tuple[Any, Any]:
    label = Classes(10)
    try:
        found = hub.load(HUB, split, {"image": IMAGE, "label": label}, published=PUBLISHED[split])
    except UserError as error:
        if hub.folder_of(HUB) is not None:
            raise
        raise UserError(
            f"fashion-mnist needs its data: apt install dataset-fashion-mnist, or set {VARIABLE} to their "
            f"folder; otherwise, {error}"
        ) from None
    return found.pictures("image", "L", (28, 28)), found.labels("label", label)
