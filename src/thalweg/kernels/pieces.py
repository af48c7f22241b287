"""Layers cut into pieces that fit a cache, and memory that every step uses again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from thalweg.kernels import Layer

PIECE = 1 << 18
"""Elements taken together on the CPU, 1 MiB in float32: what is read and written for them stays in the cache."""
CHUNK = 1 << 24
"""The same on an accelerator, 64 MiB: every operation costs a launch, and should take longer than that."""


def piece_size(device: torch.device) -> int:
    """How many elements are taken together on a device; temporaries are of this size."""
    return PIECE if device.type == "cpu" else CHUNK


class Scratch:
    """Memory for tensors that live for less than a step, as large as the largest asked for, kept from step to step.

    On CPU a fresh large tensor costs more than what is computed in it: the system maps and clears it page by page.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor, dtype: torch.dtype, use: str) -> Tensor:
        """An uninitialised tensor of the shape and layout of ``x``, valid until the next call for the same ``use``."""
        if x.device.type != "cpu" or torch.compiler.is_compiling() or not is_dense(x):
            return torch.empty_like(x, dtype=dtype)
        key = (use, x.device, dtype)
        memory = self._memory.get(key)
        if memory is None or memory.numel() < x.numel():
            self._memory[key] = memory = torch.empty(x.numel(), dtype=dtype, device=x.device)
        return memory if memory.shape == x.shape else memory.as_strided(x.shape, x.stride())


def is_dense(x: Tensor) -> bool:
    """Whether ``x`` fills its memory without gaps or overlaps, in whatever order of axes."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


def flat(tensors: list[Tensor]) -> list[Tensor] | None:
    """The tensors as vectors in the order of their memory; None if they are not dense in one layout."""
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1) for t in tensors]
    if is_dense(tensors[0]) and all(t.stride() == tensors[0].stride() for t in tensors):
        return [t.as_strided((t.numel(),), (1,)) for t in tensors]
    return None


def pieces(layer: Layer, r: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """The layer and ``r`` beside it, cut alike; whole where they cannot be cut or the step is being compiled."""
    size = piece_size(r.device)
    whole = [layer.param, layer.grad, layer.exp_avg, layer.exp_avg_sq, r]
    if layer.explore_ema is not None:
        whole.append(layer.explore_ema)
    vectors = None if r.numel() <= size or torch.compiler.is_compiling() else flat(whole)
    if vectors is None:
        yield layer, r
        return
    for i, (param, grad, m, v, r_piece, *rest) in enumerate(zip(*(t.split(size) for t in vectors), strict=True)):  # type: ignore[no-untyped-call]
        b = rest[0] if rest else None
        piece = layer._replace(
            param=param, grad=grad, exp_avg=m, exp_avg_sq=v, explore_ema=b, memory=None, start=i * size
        )
        yield piece, r_piece
