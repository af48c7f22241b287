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

    What is asked for, by ``fused=True`` (Triton's kernels on CUDA, compiled ones elsewhere) or ``foreach``; left open,
    foreach on CPU and CUDA and single elsewhere. In a step that is being compiled always single, for the compiler to
    fuse.

    Raises:
        ImportError: ``fused=True`` on CUDA, and no Triton.
    """
    if torch.compiler.is_compiling():
        return single
    if group["fused"]:
        return _triton() if device.type == "cuda" else compiled
    if group["foreach"] is None:
        return foreach if device.type in ("cpu", "cuda") else single
    return foreach if group["foreach"] else single


def describe(group: dict[str, Any], device: torch.device) -> str:
    """The choice in words."""
    return f"{_NAMES.get(choose(group, device), 'triton')} on {device.type}"


def _triton() -> ModuleType:
    """Imported where it is needed: Triton may be missing, and takes its time."""
    try:
        from thalweg.backends import triton
    except ImportError as error:
        raise ImportError("fused=True for parameters on CUDA needs Triton: pip install triton") from error
    return triton
