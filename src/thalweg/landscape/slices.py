"""The loss along lines and planes through a network's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.arguments import check_finite, check_integer, reject
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import check_params, moved_to, value
from thalweg.landscape.estimates import random_vectors
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Coordinates, Vector, as_numbers, as_vector, dot, flat


@dataclass(frozen=True, slots=True)
class Slice:
    """The loss on a grid of a line or a plane θ_0 + x d_1 (+ y d_2).

    Attributes:
        x: coordinates along the first direction, float64.
        y: along the second; None on a line.
        losses: shape (len(x),), or (len(x), len(y)), float64.
        points: (x, y) of the solutions that span a plane, shape (3, 2); else None.
    """

    x: Tensor
    y: Tensor | None
    losses: Tensor
    points: Tensor | None = None


def filter_normalised_directions(params: Iterable[Tensor], count: int = 1, *, seed: int = 0) -> list[Tensor]:
    """Random directions whose filters have the norms of the network's own (Li et al., arXiv 1712.09913).

    A filter is p[i] of a parameter of two or more axes. Vectors, biases and those of norms, are not moved.

    Returns:
        Vectors of as many entries as the parameters have.

    >>> p = torch.tensor([[3.0, 4.0], [1.0, 0.0]], requires_grad=True)
    >>> filter_normalised_directions([p])[0].view(2, 2).norm(dim=1).round(decimals=4).tolist()
    [5.0, 1.0]
    """
    params = check_params(params)
    count = check_integer("count", count, 1)
    found = []
    for drawn in random_vectors(flat(params), count, seed):
        pieces = []
        for p, piece in zip(params, torch.split(drawn, [p.numel() for p in params]), strict=True):
            if p.dim() < 2:
                pieces.append(torch.zeros_like(piece))
                continue
            rows, own = piece.view(len(p), -1), p.detach().reshape(len(p), -1)
            pieces.append(rows * own.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True))
        found.append(flat(pieces))
    return found


@undisturbed()
def slice_1d(loss: Loss, params: Iterable[Tensor], direction: Vector, x: Coordinates) -> Slice:
    """The loss at θ + x d for each x.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        direction: d, a vector: of :func:`filter_normalised_directions`, or an eigenvector
            (``hessian_eigenpairs(...).vectors[0]``); an array or a list of as many numbers; or a list of tensors in the
            shapes of the parameters.
        x: where, shape (n,): a tensor, an array or a list of numbers.

    Raises:
        ValueError: shapes that do not fit, or a loss that is not finite.
    """
    params = check_params(params)
    theta = flat(params)
    x, d = as_numbers("x", x), as_vector("direction", direction, params)
    return Slice(x, None, _losses(loss, params, (theta + a * d for a in x.tolist())))


@undisturbed()
def slice_2d(
    loss: Loss, params: Iterable[Tensor], directions: Iterable[Vector], x: Coordinates, y: Coordinates | None = None
) -> Slice:
    """The loss at θ + x d_1 + y d_2 for each x and y; y is x unless given. Otherwise as :func:`slice_1d`."""
    params = check_params(params)
    theta = flat(params)
    x = as_numbers("x", x)
    y = x if y is None else as_numbers("y", y)
    d, e = _vectors("directions", directions, params, 2)
    rows = [_losses(loss, params, (theta + a * d + b * e for b in y.tolist())) for a in x.tolist()]
    return Slice(x, y, torch.stack(rows))


@undisturbed()
def plane_through(
    loss: Loss, params: Iterable[Tensor], solutions: Iterable[Vector], *, points: int = 21, margin: float = 0.25
) -> Slice:
    """The loss on the plane through three solutions, in Euclidean coordinates of the parameters.

    The first solution is the origin, the second lies on the x axis (Garipov et al., arXiv 1802.10026).

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        solutions: three vectors of all parameters, as of ``torch.nn.utils.parameters_to_vector`` or lists of tensors in
            the shapes of the parameters, not on one line.
        points: of each axis, at least 2.
        margin: how far the picture goes beyond the solutions, of their extent.

    Raises:
        ValueError: an argument outside its range.
    """
    params = check_params(params)
    points = check_integer("points", points, 2)
    check_finite("margin", margin)
    origin, first, second = _vectors("solutions", solutions, params, 3)
    along, other = first - origin, second - origin
    if not along.norm() > 0:
        reject("solutions", "two that are the same", "three vectors that are not on one line")
    d1 = along / along.norm()
    rest = other - dot(other, d1) * d1
    if not rest.norm() > 1e-6 * other.norm():
        reject("solutions", "three on one line", "three vectors that are not on one line")
    d2 = rest / rest.norm()
    at = torch.tensor([[0.0, 0.0], [dot(along, d1), 0.0], [dot(other, d1), dot(other, d2)]], dtype=torch.float64)
    low, high = at.min(0).values, at.max(0).values
    room = margin * (high - low)
    x, y = (
        torch.linspace(float(a), float(b), points, dtype=torch.float64)
        for a, b in zip(low - room, high + room, strict=True)
    )
    with moved_to(params, origin):
        found = slice_2d(loss, params, (d1, d2), x, y)
    return Slice(found.x, found.y, found.losses, at)


def _losses(loss: Loss, params: list[Tensor], places: Iterator[Tensor]) -> Tensor:
    found = []
    for place in places:
        with moved_to(params, place):
            found.append(value(loss))
    return torch.tensor(found, dtype=torch.float64)


def _vectors(argument: str, given: Iterable[Vector], params: list[Tensor], count: int) -> list[Tensor]:
    found: list[Any] = list(given)
    if len(found) != count:
        reject(argument, f"{len(found)} of them", f"{('two', 'three')[count - 2]} vectors")
    return [as_vector(argument, one, params) for one in found]
