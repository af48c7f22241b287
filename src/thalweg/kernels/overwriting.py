"""Whose memory may be written to: what a step moves, each its own; and gradients as scratch."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from thalweg.kernels import eightbit
from thalweg.kernels.checks import BUFFERS, check_memory, check_parameter, check_state, holds_its_values
from thalweg.kernels.pieces import is_dense
from thalweg.sharding import local, placement


class Footprint:
    """Where the last step wrote to. Only when that changes is everything checked that addresses do not show."""

    def __init__(self) -> None:
        self._written: list[int] = []

    def check(self, written: list[int], layers: Iterable[tuple[Any, dict[str, Any]]], optimizer: str) -> None:
        """Raise unless parameters and state that are ``written`` to are sound, and none shares memory with another.

        Args:
            written: addresses, and whatever else changes when a tensor is replaced by another.
            layers: each parameter with its state, empty if it is yet to be made.
            optimizer: its name, for the error.
        """
        if written == self._written:
            return
        spans = []
        for p, state in layers:
            check_parameter(p, optimizer)
            if state:
                check_state(p, state)
            own = {"a parameter": p, **{name: state[name] for name in BUFFERS if name in state}}
            for name, t in own.items():
                of = (
                    f"{name} of shape {tuple(p.shape)}"
                    if t is p
                    else f"{name} of a parameter of shape {tuple(p.shape)}"
                )
                here: Any = local(t)
                for part in (here.codes, here.scale) if eightbit.is_8bit(here) else (here,):
                    if holds_its_values(type(part)):
                        check_memory(of, part)
                        if part.numel() > 0 and part.data_ptr() != 0 and is_dense(part):
                            spans.append((*_span(part), of))
        spans.sort()
        for (device, _, end, one), (other_device, start, _, other) in pairwise(spans):
            if device == other_device and start < end:
                raise ValueError(
                    f"{one} and {other} share memory, and would be moved twice: give {optimizer} one parameter, which "
                    "several modules may hold, and each parameter state of its own"
                )
        self._written = written


def overwritable(params: Iterable[Tensor]) -> frozenset[Tensor]:
    """The parameters whose gradient may be written to without anything else changing; none in a step being compiled.

    Such a gradient is dense, laid out as its parameter, without a graph, and shares no memory with another gradient or
    a parameter: of ``a.view(-1) + b.view(-1)`` autograd gives both gradients the same memory.
    """
    if torch.compiler.is_compiling():
        return frozenset()
    params = [p for p in params if p.grad is not None]
    owned = [(local(p), None) for p in params] + [(local(p.grad), p) for p in params]
    spans = [(_span(t), p) for t, p in owned if _is_plain(t)]
    shared: set[Tensor | None] = set()
    last_end, last = ("", 0), None
    for (device, start, end), p in sorted(spans, key=lambda it: it[0]):
        if (device, start) < last_end:
            shared |= {p, last}
        if (device, end) > last_end:
            last_end, last = (device, end), p
    return frozenset(p for p in params if p not in shared and _fits(p, p.grad))


def _fits(p: Any, g: Any) -> bool:
    if placement(p) != placement(g):
        return False
    own, there = local(g), local(p)
    return _is_plain(own) and not own.requires_grad and is_dense(own) and own.stride() == there.stride()


def _span(t: Tensor) -> tuple[str, int, int]:
    """Device, first byte and end of a tensor's memory."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return str(t.device), t.data_ptr(), t.data_ptr() + extent * t.element_size()


def _is_plain(t: Tensor) -> bool:
    return holds_its_values(type(t)) and t.layout == torch.strided and t.numel() > 0
