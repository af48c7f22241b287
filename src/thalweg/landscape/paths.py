"""Paths between two solutions, and the barrier on them: one valley or two?

Solutions are vectors of all parameters, as of ``torch.nn.utils.parameters_to_vector``, or lists of tensors in the
shapes of the parameters. Networks with batch norm need their statistics computed anew at every place: give losses in
training mode, or networks without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import check_integer, check_positive, reject
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import check_params, moved_to, value, value_and_gradient
from thalweg.landscape.estimates import check_seed
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Vector, as_vector, dot

LEAST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Path:
    """The loss along a path from one solution to another.

    Attributes:
        t: from 0 to 1, shape (n,).
        losses: shape (n,), float64.
        places: where on the path the losses are, shape (n, entries).
    """

    t: Tensor
    losses: Tensor
    places: Tensor

    @property
    def barrier(self) -> float:
        """The largest L(t) - [(1-t) L(0) + t L(1)], as in linear mode connectivity: 0 within one convex basin."""
        line = self.losses[0] + self.t * (self.losses[-1] - self.losses[0])
        return float((self.losses - line).max())

    @property
    def climb(self) -> float:
        """How far the highest point lies above the higher of the two ends."""
        return float(self.losses.max() - max(self.losses[0], self.losses[-1]))


@undisturbed()
def linear_path(loss: Loss, params: Iterable[Tensor], start: Vector, end: Vector, *, points: int = 25) -> Path:
    """The loss on the straight line from ``start`` to ``end``.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        start: a solution.
        end: another.
        points: how many, at least 3, the ends among them.

    Raises:
        ValueError: an argument outside its range.
    """
    params, start, end = _ends(params, start, end)
    t = _grid(points)
    return _along(loss, params, t, torch.stack([(1 - x) * start + x * end for x in t.tolist()]))


@undisturbed()
def bezier_path(
    loss: Loss,
    params: Iterable[Tensor],
    start: Vector,
    end: Vector,
    *,
    steps: int = 300,
    lr: float = 0.01,
    points: int = 25,
    seed: int = 0,
) -> Path:
    """A low-loss path (1-t)² start + 2t(1-t) C + t² end: C trained to lower the mean loss over t (Garipov et al. 2018).

    From the middle of the line, by Adam with a cosine schedule, one uniform t a step, stratified so that any ten steps
    cover [0, 1].

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`. A closure may draw a new batch at each call.
        params: the parameters, which come back as they were.
        start: a solution.
        end: another.
        steps: of training, at least 1.
        lr: Adam's learning rate above 0: what C moves by in a step, in each entry.
        points: as in :func:`linear_path`.
        seed: of the drawn t.

    Raises:
        ValueError: an argument outside its range.
    """
    params, start, end = _ends(params, start, end)
    steps, points = check_integer("steps", steps, 1), check_integer("points", points, LEAST_POINTS)
    check_positive("lr", lr)
    control = torch.nn.Parameter((start + end) / 2.0)
    optimizer = torch.optim.Adam([control], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    drawn = torch.rand(steps, generator=torch.Generator().manual_seed(check_seed(seed)), dtype=torch.float64).tolist()
    for step, u in enumerate(drawn):
        t = ((step * 3) % 10 + u) / 10.0
        weight = 2.0 * t * (1.0 - t)
        with moved_to(params, _bezier(start, control.detach(), end, t)):
            control.grad = weight * value_and_gradient(loss, params)[1]
        optimizer.step()
        schedule.step()
    t_grid = _grid(points)
    middle = control.detach()
    return _along(loss, params, t_grid, torch.stack([_bezier(start, middle, end, t) for t in t_grid.tolist()]))


@undisturbed()
def elastic_band(
    loss: Loss,
    params: Iterable[Tensor],
    start: Vector,
    end: Vector,
    *,
    images: int = 9,
    steps: int = 500,
    lr: float = 0.01,
    points: int = 25,
) -> Path:
    """The path of a nudged elastic band, which settles on a minimum-energy path (Henkelman and Jónsson 2000).

    Images between the ends follow the negative gradient across the band, by Adam, and are put back at equal distances
    along it after every step; the highest, once it is known, climbs along the band, to the saddle.

    Args:
        loss: a closure that returns the same loss at each call, or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        start: a solution.
        end: another.
        images: between the ends, at least 1.
        steps: at least 1.
        lr: Adam's learning rate above 0, on a cosine schedule.
        points: of the path returned, spread over the band; its images are among them if points = images + 2.

    Raises:
        ValueError: an argument outside its range.
    """
    params, start, end = _ends(params, start, end)
    images, steps = check_integer("images", images, 1), check_integer("steps", steps, 1)
    points = check_integer("points", points, LEAST_POINTS)
    check_positive("lr", lr)
    band = torch.stack([start + (end - start) * k / (images + 1) for k in range(images + 2)])
    inner = torch.nn.Parameter(band[1:-1].clone())
    optimizer = torch.optim.Adam([inner], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ends = max(value_at(loss, params, start), value_at(loss, params, end))
    for step in range(steps):
        heights, slopes = [], []
        for image in band[1:-1]:
            with moved_to(params, image):
                height, slope = value_and_gradient(loss, params)
            heights.append(height)
            slopes.append(slope)
        top = max(range(images), key=heights.__getitem__)
        climbing = top if step > steps // 2 and heights[top] > ends else -1
        forces = []
        for k, slope in enumerate(slopes):
            tangent = band[k + 2] - band[k]
            tangent = tangent / tangent.norm().clamp(min=1e-30)
            along = dot(slope, tangent) * tangent
            forces.append(slope - 2.0 * along if k == climbing else slope - along)
        inner.grad = torch.stack(forces)
        optimizer.step()
        schedule.step()
        band[1:-1] = inner.detach()
        if climbing < 0:
            band = _spread(band, images + 2)
        else:  # the two halves by themselves, so that the climber stays where it is
            before, after = band[: climbing + 2], band[climbing + 1 :]
            band = torch.cat([_spread(before, len(before)), _spread(after, len(after))[1:]])
        with torch.no_grad():
            inner.copy_(band[1:-1])
    found = band if points == images + 2 else _spread(band, points)
    return _along(loss, params, _grid(points), found)


def value_at(loss: Loss, params: list[Tensor], place: Tensor) -> float:
    """The loss at another place."""
    with moved_to(params, place):
        return value(loss)


def _bezier(start: Tensor, control: Tensor, end: Tensor, t: float) -> Tensor:
    return (1.0 - t) ** 2 * start + 2.0 * t * (1.0 - t) * control + t**2 * end


def _spread(band: Tensor, count: int) -> Tensor:
    """Points at equal distances along a polygon, its ends among them."""
    lengths = (band[1:] - band[:-1]).norm(dim=1).double()
    reached = torch.cat([torch.zeros(1, dtype=torch.float64, device=band.device), lengths.cumsum(0)])
    wanted = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device=band.device) * reached[-1]
    at = torch.searchsorted(reached, wanted, right=True).clamp(1, len(band) - 1)
    share = ((wanted - reached[at - 1]) / lengths[at - 1].clamp(min=1e-300)).clamp(0, 1).to(band.dtype)[:, None]
    spread: Tensor = band[at - 1] + share * (band[at] - band[at - 1])
    return spread


def _along(loss: Loss, params: list[Tensor], t: Tensor, places: Tensor) -> Path:
    losses = torch.tensor([value_at(loss, params, place) for place in places], dtype=torch.float64)
    return Path(t, losses, places)


def _grid(points: int) -> Tensor:
    points = check_integer("points", points, LEAST_POINTS)
    return torch.linspace(0.0, 1.0, points, dtype=torch.float64)


def _ends(params: Iterable[Tensor], start: Vector, end: Vector) -> tuple[list[Tensor], Tensor, Tensor]:
    found = check_params(params)
    first, last = as_vector("start", start, found), as_vector("end", end, found)
    if not math.isfinite(float((last - first).norm())) or torch.equal(first, last):
        reject("end", "the start", "another solution")
    return found, first, last
