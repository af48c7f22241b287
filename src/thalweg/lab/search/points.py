"""Where a study looks: points of a scrambled Halton sequence, a pure function of the study and the trial's number.

Nothing is asked for and nothing stored: every process, anywhere, knows every point. Optimizers share the sequence, so
that on the axes that they share they try the same shares of their ranges.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np

from thalweg.lab.contenders.space import LR_FACTOR, Point, Space
from thalweg.records.metric import Metric
from thalweg.records.results import NEIGHBOUR, Axis, Trial, best, edge, neighbours

ROUNDS = 2  # after the first points of a study
BOX = 1.0 / 6.0  # of each range, in which points near the best lie


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


def has_rounds(space: Space) -> bool:
    """Whether rounds follow the first points: not where an axis is a list of values, nor where nothing is searched."""
    return bool(space) and not any(axis.values for axis in space)


def per_study(space: Space, trials: int) -> int:
    """How many points a study of so many first ones has with its rounds, of half as many each."""
    return trials + ROUNDS * has_rounds(space) * math.ceil(trials / 2)


def of_round(space: Space, found: Sequence[Trial], metric: Metric, name: str, count: int) -> list[dict[str, float]]:
    """The next ``count`` points of a study, after the trials that were ``found`` in it.

    Where the best learning rate is at an edge of what was tried, they continue beyond it: the best point with a rate
    that is :data:`~thalweg.records.results.NEIGHBOUR` times further out, then points there on all axes. Otherwise the
    best point is refined: its rate times and divided by that factor as far as that was not tried, then half way to the
    better of its neighbours, then points near it on all axes. Where no trial finished, they are more points of the
    whole space.
    """
    chosen = best(found, metric)
    if chosen is None:
        return [point(space, name, number) for number in range(count)]
    own = next((axis for axis in space if axis.name == "lr"), None)
    there, rates = tuple(_box(axis, chosen.point) for axis in space), []
    if own is not None:
        rate, tried = chosen.point["lr"], [trial.point["lr"] for trial in found]
        whole = Axis("lr", min(own.low, *tried), max(own.high, *tried), log=True)
        side = edge(whole.share(rate))
        rates = _rates(chosen, found, metric, side)
        if side is not None:
            there = beyond(tuple(whole if axis.name == "lr" else axis for axis in space), side)
    nearest = [{**chosen.point, "lr": float(f"{other:.12g}")} for other in rates]
    return (nearest + [point(there, name, number) for number in range(count)])[:count]


def _rates(chosen: Trial, found: Sequence[Trial], metric: Metric, side: str | None) -> list[float]:
    """The learning rates to try beside that of the best trial, at its other coordinates, the most telling first.

    At an edge, the one beyond it alone.
    """
    rate = chosen.point["lr"]
    below, above = neighbours(chosen, found)
    rates = [rate * NEIGHBOUR] * (above is None and side != "low")
    rates += [rate / NEIGHBOUR] * (below is None and side != "high")
    if side is not None:
        return rates
    better = best([trial for trial in (above, below) if trial is not None], metric)
    return rates + ([math.sqrt(rate * better.point["lr"])] if better is not None else [])


def _box(axis: Axis, centre: Point) -> Axis:
    """The part of an axis around a point: of the learning rate on both sides of it, of others within the range."""
    share = axis.share(centre[axis.name]) - BOX / 2.0
    if axis.name != "lr":
        share = min(max(share, 0.0), 1.0 - BOX)
    low, high = (axis.low * (axis.high / axis.low) ** s if axis.log else axis.at(s) for s in (share, share + BOX))
    return replace(axis, low=low, high=high)


def beyond(space: Space, side: str) -> Space:
    """The space whose learning rates continue where those of ``space`` end, on one side."""

    def moved(axis: Axis) -> Axis:
        if axis.name != "lr":
            return axis
        if side == "high":
            return replace(axis, low=axis.high, high=axis.high * LR_FACTOR)
        return replace(axis, low=axis.low / LR_FACTOR, high=axis.low)

    return tuple(moved(axis) for axis in space)
