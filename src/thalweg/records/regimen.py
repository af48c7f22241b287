"""How every optimizer of a comparison is trained: schedule, clipping, precision and so on, listed here alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from thalweg.arguments import did_you_mean
from thalweg.records.errors import UserError

KNOWN: dict[str, tuple[str | None, ...]] = {
    "schedule": ("cosine", "linear", "polynomial", "step", "constant"),
    "lr_rule": ("none", "linear", "sqrt"),
    "augment": (None, "flip", "crop", "flip-crop", "resized-crop-flip"),
    "precision": ("no", "bf16", "fp16"),
}
ALLOWED = {
    **{name: f"one of {', '.join(map(str, known))}" for name, known in KNOWN.items()},
    "warmup": "a share of the steps in [0, 1)",
    "lr_base": "an integer of at least 1",
    "clip": "None or a number greater than 0",
    "label_smoothing": "a number in [0, 1)",
    "evaluations": "an integer from 1 to 10000",
}
"""What each field may be, in words."""
Sharding: TypeAlias = Literal["ddp", "fsdp2", "fsdp2+ep"]
SHARDINGS: tuple[str, ...] = get_args(Sharding)
"""Every process has the whole model; shards of all parameters; the same, but each layer's experts whole on some."""
AXES: dict[str, str] = {"ddp": "data", "fsdp2": "shard", "fsdp2+ep": "expert"}
"""Of each sharding the axis of a mesh along which all processes are, unless a mesh is given."""
MESH_AXES = ("data", "shard", "tensor", "expert")
"""What there may be along the axes of a mesh: copies, shards, what tensor parallelism cuts, and experts."""
Reshard: TypeAlias = Literal["each", "last"]
RESHARDS: tuple[str, ...] = get_args(Reshard)
"""After which micro-batches of a step gradients are reduced to shards, and parameters cut into them again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Regimen:
    """What decides a run beside the task, the optimizer and its settings, and is the same for all that are compared.

    Commands and recipes have an option of each name; a record of a run or of a cell holds each under its name.

    Raises:
        UserError: a value that no run can have.
    """

    schedule: str = "cosine"
    """Learning-rate schedule after a linear warm-up: cosine, linear, polynomial, step or constant."""

    warmup: float = 0.05
    """Fraction of the steps spent on the warm-up."""

    lr_rule: str = "none"
    """How the learning rate scales with the batch size: none, linear or sqrt."""

    lr_base: int = 256
    """Batch size that the learning rate is given for, if there is an --lr-rule."""

    clip: float | None = None
    """Clip the gradient to this global norm."""

    label_smoothing: float = 0.0
    """Label smoothing, for tasks whose loss supports it."""

    augment: str | None = None
    """Augmentation of image batches, by kornia: flip, crop, flip-crop or resized-crop-flip."""

    precision: str = "no"
    """Mixed precision: no (float32), bf16 or fp16."""

    evaluations: int = 20
    """Number of validations during the run."""

    def __post_init__(self) -> None:
        for name, known in KNOWN.items():
            value = getattr(self, name)
            check(self, value in known, name, ALLOWED[name], did_you_mean(str(value), filter(None, known)))
        check(self, 0.0 <= self.warmup < 1.0, "warmup", ALLOWED["warmup"])
        check(self, self.lr_base >= 1, "lr_base", ALLOWED["lr_base"])
        check(self, self.clip is None or 0.0 < self.clip < math.inf, "clip", ALLOWED["clip"])
        check(self, 0.0 <= self.label_smoothing < 1.0, "label_smoothing", ALLOWED["label_smoothing"])
        check(self, 1 <= self.evaluations <= 10_000, "evaluations", ALLOWED["evaluations"])


REGIMEN = tuple(one.name for one in fields(Regimen))


def check(of: Any, ok: bool, name: str, wanted: str, near: str = "") -> None:
    """Raise :class:`~thalweg.records.errors.UserError`, naming the field and its value, unless ``ok``."""
    if not ok:
        raise UserError(f"{name} must be {wanted}, got {getattr(of, name)!r}{near}")
