"""The loss along lines and planes through a network's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import reject
from thalweg.landscape.derivatives import Loss, check_params, flat, moved_to, value
from thalweg.landscape.estimates import check_count, random_vectors


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
    check_count("count", count, 1)
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


def slice_1d(loss: Loss, params: Iterable[Tensor], direction: Tensor, x: Tensor) -> Slice:
    """The loss at θ + x d for each x.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        direction: d, a vector: of :func:`filter_normalised_directions`, or an eigenvector
            (``hessian_eigenpairs(...).vectors[0]``).
        x: where, shape (n,).

    Raises:
        ValueError: shapes that do not fit, or a loss that is not finite.
    """
    params = check_params(params)
    theta = flat(params)
    x = _coordinates("x", x)
    check_vector(direction, theta)
    return Slice(x, None, _losses(loss, params, [theta + a * direction for a in x.tolist()]))


def slice_2d(
    loss: Loss, params: Iterable[Tensor], directions: Sequence[Tensor], x: Tensor, y: Tensor | None = None
) -> Slice:
    """The loss at θ + x d_1 + y d_2 for each x and y; y is x unless given. Otherwise as :func:`slice_1d`."""
    params = check_params(params)
    theta = flat(params)
    x, y = _coordinates("x", x), _coordinates("y", x if y is None else y)
    if len(directions) != 2:
        reject("directions", f"{len(directions)} of them", "two vectors")
    for d in directions:
        check_vector(d, theta)
    rows = [
        _losses(loss, params, [theta + a * directions[0] + b * directions[1] for b in y.tolist()]) for a in x.tolist()
    ]
    return Slice(x, y, torch.stack(rows))


def plane_through(
    loss: Loss, params: Iterable[Tensor], solutions: Sequence[Tensor], *, points: int = 21, margin: float = 0.25
) -> Slice:
    """The loss on the plane through three solutions, in Euclidean coordinates of the parameters.

    The first solution is the origin, the second lies on the x axis (Garipov et al., arXiv 1802.10026).

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters, which come back as they were.
        solutions: three vectors of all parameters, as of ``torch.nn.utils.parameters_to_vector``, not on one line.
        points: of each axis, at least 2.
        margin: how far the picture goes beyond the solutions, of their extent.

    Raises:
        ValueError: an argument outside its range.
    """
    params = check_params(params)
    check_count("points", points, 2)
    if len(solutions) != 3:
        reject("solutions", f"{len(solutions)} of them", "three vectors")
    theta = flat(params)
    for one in solutions:
        check_vector(one, theta, "solutions")
    origin, first, second = (one.detach() for one in solutions)
    along, other = first - origin, second - origin
    if not along.norm() > 0:
        reject("solutions", "two that are the same", "three vectors that are not on one line")
    d1 = along / along.norm()
    rest = other - (other @ d1) * d1
    if not rest.norm() > 1e-6 * other.norm():
        reject("solutions", "three on one line", "three vectors that are not on one line")
    d2 = rest / rest.norm()
    at = torch.tensor(
        [[0.0, 0.0], [float(along @ d1), 0.0], [float(other @ d1), float(other @ d2)]], dtype=torch.float64
    )
    low, high = at.min(0).values, at.max(0).values
    room = margin * (high - low)
    x, y = (
        torch.linspace(float(a), float(b), points, dtype=torch.float64)
        for a, b in zip(low - room, high + room, strict=True)
    )
    with moved_to(params, origin):
        found = slice_2d(loss, params, (d1, d2), x, y)
    return Slice(found.x, found.y, found.losses, at)


def _losses(loss: Loss, params: list[Tensor], places: list[Tensor]) -> Tensor:
    found = []
    for place in places:
        with moved_to(params, place):
            found.append(value(loss))
    return torch.tensor(found, dtype=torch.float64)


def _coordinates(argument: str, values: Tensor) -> Tensor:
    if values.dim() != 1 or not len(values) or not values.isfinite().all():
        reject(argument, f"one of shape {tuple(values.shape)}", "a vector of finite coordinates")
    return values.double().cpu()


def check_vector(vector: Tensor, theta: Tensor, argument: str = "direction") -> None:
    """Raise ``ValueError`` unless the vector has the shape of all parameters and is finite."""
    if vector.shape != theta.shape or not vector.isfinite().all():
        reject(argument, f"one of shape {tuple(vector.shape)}", f"a vector of {len(theta)} finite numbers")
