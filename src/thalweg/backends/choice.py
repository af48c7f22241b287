"""Which backend steps a group of parameters."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch

from thalweg.backends import compiled, foreach, single

if TYPE_CHECKING:
    from types import ModuleType

_NAMES = {single: "single", foreach: "foreach", compiled: "fused"}


def choose(group: dict[str, Any], device: torch.device) -> ModuleType:
    """The module that steps the group's parameters on ``device``.

    What is asked for, by ``fused=True`` or ``foreach``. Left open: on CPU the fused kernels, or foreach where they
    cannot be built; foreach on CUDA; single elsewhere. In a step that is being compiled always single, for the
    compiler to fuse.
    """
    if torch.compiler.is_compiling():
        return single
    if group["fused"]:
        return compiled
    if group["foreach"] is None:
        if group["fused"] is None and device.type == "cpu" and _can_build():
            return compiled
        return foreach if device.type in ("cpu", "cuda") else single
    return foreach if group["foreach"] else single


@functools.cache
def _can_build() -> bool:
    """Whether kernels can be built, with one warning for a process if not."""
    why = compiled.missing()
    if why is not None:
        warnings.warn(
            f"thalweg steps with torch's multi-tensor operations, at about half the speed: {why} "
            "(foreach=True chooses them without this warning)",
            stacklevel=2,
        )
    return why is None


def describe(group: dict[str, Any], device: torch.device) -> str:
    """The choice in words."""
    return f"{_NAMES[choose(group, device)]} on {device.type}"
