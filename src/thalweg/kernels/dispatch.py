"""Dispatch: which backend steps a group of parameters, and which one what the first cannot take."""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from thalweg.kernels import cpp, foreach, is_fake, single
from thalweg.kernels.addresses import with_memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from thalweg.kernels import Hyper, Layer, Wanted

_NAMES = {single: "single", foreach: "foreach", cpp: "fused"}


def choose(
    wanted: Wanted, device: torch.device, layers: Sequence[Layer] = (), hyper: Hyper | None = None
) -> ModuleType:
    """The module that steps parameters on ``device`` as ``wanted``, its C++ for these ``layers`` built.

    What is asked for, by ``fused=True`` (Triton's kernels on CUDA, those in C++ on CPU) or ``foreach``. Left open: on
    CPU the fused kernels, or foreach where they cannot be built; foreach on CUDA; single elsewhere. In a step that is
    being compiled always single, for the compiler to fuse; for fake tensors no kernels.

    Raises:
        ImportError: ``fused=True`` on CUDA, and no Triton.
        RuntimeError: ``fused=True`` on the CPU, and no C++ compiler, or one that fails.
    """
    if torch.compiler.is_compiling():
        return single
    fake = len(layers) > 0 and is_fake(layers[0].param)
    if wanted.fused and device.type == "cuda" and not fake:
        return _triton()
    if device.type == "cpu" and not fake and (wanted.fused or (wanted.fused is None and wanted.foreach is None)):
        why = cpp.missing(() if hyper is None else cpp.variants(layers, hyper))
        if why is None:
            return cpp
        if wanted.fused:
            raise RuntimeError(why)
        _warn(why)
    if wanted.foreach is None:
        return foreach if device.type in ("cpu", "cuda") else single
    return foreach if wanted.foreach else single


def assign(wanted: Wanted, layers: list[Layer], hyper: Hyper) -> list[tuple[ModuleType, list[Layer]]]:
    """Who steps which of a bucket's layers: what :func:`choose` says, but for those that it cannot take.

    Kernels walk memory: norms over axes in between, layouts with gaps and tensors of other classes they leave to
    single. So does foreach with tensors of different layouts.

    Raises:
        ImportError, RuntimeError: as :func:`choose`.
    """
    chosen = choose(wanted, layers[0].param.device, layers, hyper)
    if chosen is single:
        return [(single, layers)]
    if chosen is not foreach:
        layers = [with_memory(layer, hyper) if layer.memory is None else layer for layer in layers]
    if all(map(chosen.takes, layers)):
        return [(chosen, layers)]
    found: dict[ModuleType, list[Layer]] = defaultdict(list)
    for layer in layers:
        found[chosen if chosen.takes(layer) else single].append(layer)
    return list(found.items())


@functools.cache
def _warn(why: str) -> None:
    """Once in a process for what is found out once."""
    warnings.warn(
        f"{why}\nALTO and Lamb step with torch's multi-tensor operations instead, at about half the speed; "
        "foreach=True chooses them without this warning",
        stacklevel=2,
    )


def describe(wanted: Wanted, device: torch.device) -> str:
    """The choice in words."""
    try:
        return f"{_NAMES.get(choose(wanted, device), 'triton')} on {device.type}"
    except (ImportError, RuntimeError):
        return f"fused on {device.type}, which is not available here"


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``fused=True`` has kernels that run on ``device``, for E and Adam in one ``dtype``."""
    if device.type == "cpu":
        return cpp.missing([cpp.Variant(dtype, dtype, dtype, dtype, dtype)]) is None
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
        warnings.warn(
            f"Triton's kernels are not available on {device}, so torch's own step is used: {error}", stacklevel=2
        )
        return False
    return True


def _triton() -> ModuleType:
    """Imported where it is needed: Triton may be missing, and takes its time."""
    try:
        from thalweg.kernels import triton
    except ImportError as error:
        raise ImportError("fused=True for parameters on CUDA needs Triton: pip install triton") from error
    return triton
