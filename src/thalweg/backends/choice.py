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

    What is asked for, by ``fused=True`` (Triton's kernels on CUDA, those in C++ on CPU) or ``foreach``. Left open: on
    CPU the fused kernels, or foreach where they cannot be built; foreach on CUDA; single elsewhere. In a step that is
    being compiled always single, for the compiler to fuse.

    Raises:
        ImportError: ``fused=True`` on CUDA, and no Triton.
        RuntimeError: ``fused=True`` on the CPU, and no C++ compiler.
    """
    if torch.compiler.is_compiling():
        return single
    if group["fused"] and device.type in ("cpu", "cuda"):  # and not while the parameters are on meta
        return _triton() if device.type == "cuda" else _compiled()
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
            f"{why}\nALTO and Lamb step with torch's multi-tensor operations instead, at about half the speed; "
            "foreach=True chooses them without this warning",
            stacklevel=2,
        )
    return why is None


def describe(group: dict[str, Any], device: torch.device) -> str:
    """The choice in words."""
    try:
        return f"{_NAMES.get(choose(group, device), 'triton')} on {device.type}"
    except (ImportError, RuntimeError):
        return f"fused on {device.type}, which cannot be had here"


def has_kernels(device: torch.device) -> bool:
    """Whether ``fused=True`` has kernels that run on ``device``."""
    if device.type == "cpu":
        return compiled.missing() is None
    return device.type == "cuda" and _triton_runs_on(device)


@functools.cache
def _triton_runs_on(device: torch.device) -> bool:
    """Whether it is a GPU that the kernels are compiled for in the tests, NVIDIA's since the A100, and Triton works."""
    if torch.version.cuda is None or not torch.cuda.is_available():  # AMD's, or one that a fake tensor speaks of
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        _triton().probe(device)
    except ImportError:
        return False
    except Exception as error:  # it lacks a compiler or a header, say, and has no one way to tell
        warnings.warn(f"Triton's kernels cannot be had on {device}, torch's own step instead: {error}", stacklevel=2)
        return False
    return True


def _compiled() -> ModuleType:
    if (why := compiled.missing()) is not None:
        raise RuntimeError(why)
    return compiled


def _triton() -> ModuleType:
    """Imported where it is needed: Triton may be missing, and takes its time."""
    try:
        from thalweg.backends import triton
    except ImportError as error:
        raise ImportError("fused=True for parameters on CUDA needs Triton: pip install triton") from error
    return triton
