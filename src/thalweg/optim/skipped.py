"""The steps that ``nonfinite="skip"`` leaves out: counted where the verdict is, saved, and warned of if many follow."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from thalweg.kernels import has_numbers, is_fake
from thalweg.optim.hyperparameters import check_count

IN_A_ROW = 10


class SkipMonitor:
    """Reads the count at every tenth step, and warns once if all ten were skipped.

    One on CUDA is copied without waiting, to be read ten steps later; if the copy is late, so is the warning.
    """

    def __init__(self, count: int) -> None:
        self.judged, self.before = 0, count
        self.done = False
        self.arriving: Tensor | None = None

    def after_step(self, optimizer: Any, count: Tensor) -> None:
        """Note a step that has been judged: to be called once for each."""
        self.judged += 1
        if self.judged % IN_A_ROW or self.done or type(count) is not Tensor:  # a fake tensor has no number
            return
        total = self._read(count)
        if total - self.before == IN_A_ROW:
            self.done = True
            warnings.warn(
                f"{IN_A_ROW} steps in a row were skipped by {type(optimizer).__name__}, as a gradient had an infinity, "
                "a NaN or an entry whose square overflows; skipped_steps keeps counting them, and nonfinite='raise' "
                "says which gradient it is",
                RuntimeWarning,
                stacklevel=2,
            )
        self.before = total

    def _read(self, count: Tensor) -> int:
        if count.is_cpu:
            return int(count)
        if count.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return self.before
        if self.arriving is None:
            self.arriving = torch.full((), self.before, dtype=count.dtype, device="cpu", pin_memory=True)
        arrived = int(self.arriving)
        self.arriving.copy_(count, non_blocking=True)
        return arrived


def start(optimizer: Any, key: str) -> None:
    """Count on from what the groups have under ``key``, or from 0, in ``optimizer.skipped_steps``.

    Raises:
        ValueError: that is no count.
    """
    groups = getattr(optimizer, "param_groups", ())  # none yet in a constructor
    count = max((check_count(key, group.get(key, 0)) for group in groups), default=0)
    for group in groups:
        group[key] = count
    optimizer.skipped_steps = torch.tensor(count, device="cpu")
    optimizer._skip_monitor = SkipMonitor(count)


def note(optimizer: Any, key: str) -> None:
    """Write the count into all groups under ``key``, to be saved: a number, for which a device is waited for."""
    if not has_numbers(optimizer.skipped_steps):
        return
    count = int(optimizer.skipped_steps)
    for group in optimizer.param_groups:
        group[key] = count


def count_skipped(optimizer: Any, finite: Tensor) -> None:
    """Count a step in ``optimizer.skipped_steps`` unless ``finite``, where that verdict is."""
    if is_fake(finite):  # it is none
        return
    device = finite.device
    if optimizer.skipped_steps.device != device:
        # To a device without waiting; from there, if gradients have moved, only when it has arrived.
        optimizer.skipped_steps = optimizer.skipped_steps.to(device, non_blocking=device.type != "cpu")
    optimizer.skipped_steps.add_(finite.logical_not())  # in place: torch 2.11 does not compile that it is assigned
    if not torch.compiler.is_compiling() and "first_index" not in optimizer.param_groups[0]:  # a layer, in backward
        optimizer._skip_monitor.after_step(optimizer, optimizer.skipped_steps)
