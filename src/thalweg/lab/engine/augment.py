"""Augmentation of a batch of images, by kornia, named in the spec."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from thalweg.records.errors import UserError

AUGMENTATIONS = {
    "flip": ("flip",),
    "crop": ("crop",),
    "flip-crop": ("flip", "crop"),
    "resized-crop-flip": ("resized-crop", "flip"),
}
"""``flip``: half of the images mirrored; ``crop``: moved by up to an eighth of their size, what is bared being zero;
``resized-crop``: a part of 8 to 100 % of the area, 3:4 to 4:3 in shape, scaled to 7/8 of the size (224 of 256)."""


def augmentation(name: str | None) -> Any:
    """What turns a batch of images, shape (batch, channels, height, width), into another; None for no name.

    Raises:
        UserError: kornia is not installed.
    """
    if name is None:
        return None
    try:
        from kornia.augmentation import RandomCrop, RandomHorizontalFlip, RandomResizedCrop
    except ImportError:
        raise UserError(f"--augment {name} needs kornia: pip install kornia") from None

    def apply(images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise UserError(f"--augment {name} needs batches of images (batch, channels, height, width)")
        height, width = images.shape[-2:]
        padding = (-(-height // 8), -(-width // 8))
        steps = {
            "flip": RandomHorizontalFlip(p=0.5),
            "crop": RandomCrop((height, width), padding=(padding[1], padding[0], padding[1], padding[0])),
            "resized-crop": RandomResizedCrop(
                (height * 7 // 8, width * 7 // 8), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
            ),
        }
        found: Tensor = nn.Sequential(*(steps[one] for one in AUGMENTATIONS[name]))(images)
        return found

    return apply
