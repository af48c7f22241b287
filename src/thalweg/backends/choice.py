"""Which backend steps a group of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from thalweg.backends import compiled, foreach, single

if TYPE_CHECKING:
    from types import ModuleType

_NAMES = {single: "single", foreach: "foreach", compiled: "fused"}


def choose(group: dict[str, Any], device: torch.device) -> ModuleType:
    """The module that steps the group's parameters on ``device``.

    What is asked for, by ``fused=True`` or ``foreach``; left open, foreach on CPU and CUDA and single elsewhere. In a
    step that is being compiled always single, for the compiler to fuse.
    """
    if torch.compiler.is_compiling():
        return single
    if group["fused"]:
        return compiled
    if group["foreach"] is None:
        return foreach if device.type in ("cpu", "cuda") else single
    return foreach if group["foreach"] else single


def describe(group: dict[str, Any], device: torch.device) -> str:
    """The choice in words."""
    return f"{_NAMES[choose(group, device)]} on {device.type}"
