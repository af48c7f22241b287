"""How every optimizer of a comparison is trained: schedule, clipping, precision and so on, listed here alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError

SCHEDULES = ("cosine", "linear", "polynomial", "step", "constant")
LR_RULES = ("none", "linear", "sqrt")
AUGMENTATIONS = ("flip", "crop", "flip-crop", "resized-crop-flip")
PRECISIONS = ("no", "bf16", "fp16")
SHARDINGS = ("ddp", "fsdp2", "fsdp2+ep")
"""Every process has the whole model; shards of all parameters; the same, but each layer's experts whole on some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regimen:
    """What decides a run beside the task, the optimizer and its settings, and is the same for all that are compared.

    Commands and recipes have an option of each name; a record of a run or of a cell holds each under its name.

    Raises:
        UserError: a value that no run can have.
    """

    schedule: str = "cosine"
    """cosine, linear, polynomial, step or constant, after a linear warm-up."""

    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""

    lr_rule: str = "none"
    """none, linear or sqrt: how the learning rate grows with the batch size."""

    lr_base: int = 256
    """The batch size for which lr is given, with an --lr-rule."""

    clip: float | None = None
    """Largest global norm of the gradient."""

    label_smoothing: float = 0.0
    """Label smoothing, for tasks whose loss supports it."""

    augment: str | None = None
    """Of batches of images, by kornia: flip, crop, flip-crop or resized-crop-flip."""

    precision: str = "no"
    """no (float32), bf16 or fp16."""

    evaluations: int = 20
    """Validations over the run."""

    def __post_init__(self) -> None:
        choose(self, "schedule", SCHEDULES)
        check(self, 0.0 <= self.warmup < 1.0, "warmup", "a share of the steps in [0, 1)")
        choose(self, "lr_rule", LR_RULES)
        check(self, self.lr_base >= 1, "lr_base", "an integer of at least 1")
        check(self, self.clip is None or 0.0 < self.clip < math.inf, "clip", "None or a number greater than 0")
        check(self, 0.0 <= self.label_smoothing < 1.0, "label_smoothing", "in [0, 1)")
        if self.augment is not None:
            choose(self, "augment", AUGMENTATIONS, "None or ")
        choose(self, "precision", PRECISIONS)
        check(self, 1 <= self.evaluations <= 10_000, "evaluations", "an integer from 1 to 10000")


REGIMEN = tuple(one.name for one in fields(Regimen))


def check(of: Any, ok: bool, name: str, wanted: str, near: str = "") -> None:
    """Raise :class:`~thalweg.records.errors.UserError`, naming the field and its value, unless ``ok``."""
    if not ok:
        raise UserError(f"{name} must be {wanted}, got {getattr(of, name)!r}{near}")


def choose(of: Any, name: str, known: Collection[str], otherwise: str = "") -> None:
    """Raise :class:`~thalweg.records.errors.UserError`, with the nearest name, unless the field is one of ``known``."""
    value = getattr(of, name)
    check(of, value in known, name, f"{otherwise}one of {', '.join(known)}", did_you_mean(str(value), known))
