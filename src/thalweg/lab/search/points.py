"""Where a study looks: points of a scrambled Halton sequence, a pure function of the study and the trial's number.

Nothing is asked for and nothing stored: every process, anywhere, knows every point. Optimizers share the sequence, so
that on the axes that they share they try the same shares of their ranges.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np

from thalweg.lab.contenders.space import LR_FACTOR, Space
from thalweg.records.results import Axis

MOST_ROUNDS = 2  # beyond an edge


@cache
def shares(name: str, axes: int, count: int) -> tuple[tuple[float, ...], ...]:
    """The first ``count`` points of the sequence of this name in the unit cube; more axes or points extend it."""
    from scipy.stats import qmc  # half a second, which `thalweg train` does not need

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    found = qmc.Halton(axes, scramble=True, rng=np.random.default_rng(seed)).random(count)
    return tuple(tuple(map(float, row)) for row in found)


def point(space: Space, name: str, number: int) -> dict[str, float]:
    """The point of trial ``number`` in the sequence of this name; where all axes are lists, of their grid."""
    if all(axis.values for axis in space):
        grid = list(product(*(axis.values for axis in space)))
        return dict(zip((axis.name for axis in space), grid[number % len(grid)], strict=True))
    unit = shares(name, len(space), number + 1)[number]
    return {axis.name: axis.at(share) for axis, share in zip(space, unit, strict=True)}


def beyond(space: Space, side: str) -> Space:
    """The space whose learning rates continue where those of ``space`` end, on one side."""

    def moved(axis: Axis) -> Axis:
        if axis.name != "lr":
            return axis
        if side == "high":
            return replace(axis, low=axis.high, high=axis.high * LR_FACTOR)
        return replace(axis, low=axis.low / LR_FACTOR, high=axis.low)

    return tuple(moved(axis) for axis in space)
