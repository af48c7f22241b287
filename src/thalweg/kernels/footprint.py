"""What a step writes to: parameters and state that are sound, each in memory of its own."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import Tensor

from thalweg.kernels import eightbit
from thalweg.kernels.checks import BUFFERS, check_memory, check_parameter, check_state, holds_its_values
from thalweg.kernels.pieces import is_dense
from thalweg.sharding import local


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


def _span(t: Tensor) -> tuple[str, int, int]:
    """Device, first byte and end of a tensor's memory."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return str(t.device), t.data_ptr(), t.data_ptr() + extent * t.element_size()
