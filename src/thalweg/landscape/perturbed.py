"""Flatness as the loss around a place: in the worst direction of a ball, and on average; and the gradient's norm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import check_integer, check_positive
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import check_params, gradient, moved_to, value, value_and_gradient
from thalweg.landscape.estimates import Estimate, mean_of, random_vectors
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Vector, as_vector, flat


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The highest loss that was found in a ball.

    Attributes:
        increase: L(θ + Su) - L(θ), at least 0: a lower bound of the true maximum.
        step: S u, where that is.
        gradients: how many gradients it took.
    """

    increase: float
    step: Tensor
    gradients: int


@undisturbed()
def worst_case(
    loss: Loss,
    params: Iterable[Tensor],
    radius: float,
    *,
    steps: int = 20,
    scale: Vector | None = None,
    seed: int = 0,
) -> WorstCase:
    """The largest increase of the loss over ‖u‖ ≤ radius, L(θ + Su) - L(θ), by ascent on the sphere.

    u ← radius · S∇L(θ + Su) / ‖S∇L(θ + Su)‖, from u = 0 and from a random point of the sphere; the best point met
    counts. The first step from 0 is SAM's (Foret et al. 2021). Of a convex quadratic it converges to the maximum, at a
    minimum that is radius²·λ_max/2.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters; they come back as they were.
        radius: ρ above 0, of u.
        steps: from each of the two starts, at least 1.
        scale: S, a number for each entry; :func:`~thalweg.landscape.filter_scale` makes ρ relative to the weights.
        seed: of the random start.

    Raises:
        ValueError: an argument outside its range.
    """
    check_positive("radius", radius)
    steps = check_integer("steps", steps, 1)
    params = check_params(params)
    theta = flat(params)
    by = _scale(scale, params)
    here = value(loss)
    best, best_step, gradients = 0.0, torch.zeros_like(theta), 0
    random = next(random_vectors(theta, 1, seed))
    for start in (torch.zeros_like(theta), radius * random / random.norm()):
        u, increase = start, 0.0
        for step in range(steps + 1):
            with moved_to(params, theta + by * u):
                if step < steps:
                    height, slope = value_and_gradient(loss, params)
                    gradients += 1
                else:
                    height = value(loss)
            increase = height - here
            if increase > best:
                best, best_step = increase, by * u
            slope = by * slope
            if not (norm := slope.norm()) > 0:
                break
            u = radius * slope / norm
    return WorstCase(best, best_step, gradients)


@undisturbed()
def mean_increase(
    loss: Loss,
    params: Iterable[Tensor],
    sigma: float,
    *,
    pairs: int = 16,
    scale: Vector | None = None,
    seed: int = 0,
) -> Estimate:
    """The mean of L(θ + σSz) - L(θ) over normal z, to second order σ²·tr(SHS)/2, with its standard error.

    z and -z are drawn together, so that the slope of the loss adds no noise.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters; they come back as they were.
        sigma: σ above 0.
        pairs: how many z and -z, at least 2.
        scale: S, a number for each entry.
        seed: of the perturbations.

    Raises:
        ValueError: an argument outside its range.
    """
    check_positive("sigma", sigma)
    pairs = check_integer("pairs", pairs, 2)
    params = check_params(params)
    theta = flat(params)
    by = _scale(scale, params)
    here, found = value(loss), []
    for z in random_vectors(theta, pairs, seed):
        both = []
        for sign in (1.0, -1.0):
            with moved_to(params, theta + sign * sigma * by * z):
                both.append(value(loss))
        found.append(sum(both) / 2.0 - here)
    return mean_of(torch.tensor(found, dtype=torch.float64))


@undisturbed()
def squared_gradient_norm(loss: Loss, params: Iterable[Tensor], *, scale: Vector | None = None) -> float:
    """‖S∇L‖², S = diag(scale), of the loss as it is; :func:`~thalweg.landscape.gradient_noise` takes the noise off.

    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> squared_gradient_norm(lambda: x.square().sum() / 2, [x])
    25.0
    """
    params = check_params(params)
    slope = gradient(loss, params)
    return float((_scale(scale, params) * slope).double().square().sum())


def _scale(scale: Vector | None, params: list[Tensor]) -> Tensor:
    return torch.ones_like(flat(params)) if scale is None else as_vector("scale", scale, params)
