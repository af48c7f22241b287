"""The largest eigenvalues of the Hessian, by restarted Lanczos, with two kinds of error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import as_integer, check_positive, reject
from thalweg.evaluation import undisturbed
from thalweg.kernels import compute_dtype
from thalweg.landscape.derivatives import Curvature
from thalweg.landscape.estimates import random_vectors
from thalweg.landscape.lanczos import lanczos
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Vector, as_vector, dot

DENSE = 40
"""Up to so many entries the Hessian is written down as a matrix."""
ROUGH = 1e-3
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
MIXED_IN = 0.1
"""Norm of the random vector that is added to a start: an eigenvector found earlier may have no part in a new one."""


@dataclass(frozen=True, slots=True)
class Eigenpairs:
    """Eigenvalues, descending, with their eigenvectors.

    Attributes:
        values: shape (k,).
        vectors: shape (k, entries), of norm 1, in the coordinates of the scale if there was one.
        residuals: ‖Hv - λv‖, shape (k,): an eigenvalue lies within so much of each value.
        standard_errors: shape (k,): of each value as an estimate of what it would be on the whole population, from the
            batches of a sample: with λ = mean of vᵀH_b v, the first order of perturbation theory. NaN where the sample
            is one batch.
        products: how many products with the Hessian it took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    standard_errors: Tensor
    products: int


@undisturbed()
def hessian_eigenvalues(loss: Loss, params: Iterable[Tensor], k: int = 1) -> Tensor:
    """The k largest eigenvalues of the Hessian of a loss, descending.

    Args:
        loss: a closure that returns a scalar, always the same one; or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters by which it is differentiated, as in an optimizer.
        k: how many, at most as many as there are parameter entries.

    Returns:
        The eigenvalues λ_1 ≥ ... ≥ λ_k, shape (k,), in the dtype of the parameters, on the CPU. The largest are meant,
        not those largest in magnitude. For k = 1 it takes about 40 bytes per parameter in float32, beside the graph.

    Raises:
        ValueError: an argument outside its range, or a loss that is no finite scalar.
        RuntimeError: no convergence.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_eigenvalues(lambda: 3 * x[0] ** 2 - x[1] ** 2, [x], k=2)
    tensor([ 6., -2.])
    """
    curvature = Curvature(loss, params)
    return largest(curvature.times, curvature.like, k)[0].cpu()


@undisturbed()
def hessian_eigenpairs(
    loss: Loss,
    params: Iterable[Tensor],
    k: int = 1,
    *,
    scale: Vector | None = None,
    start: Vector | None = None,
    tolerance: float | None = None,
    errors: bool = True,
) -> Eigenpairs:
    """The k largest eigenvalues of S H S with their eigenvectors and error bars; S = diag(scale).

    Args:
        loss: as in :func:`hessian_eigenvalues`, like ``params`` and ``k``.
        params: the parameters.
        k: how many.
        scale: a number for each entry: :func:`~thalweg.landscape.filter_scale` for filter-normalised sharpness.
        start: a vector to start from, such as the eigenvector found last, not zero; a random one of a tenth of its norm
            is added. None: a random one, always the same.
        tolerance: relative to the largest eigenvalue; None: 1e-9 in float64, 1e-5 in float32.
        errors: whether to spend one more pass over the sample for each eigenvalue on its standard error.

    Raises:
        ValueError: an argument outside its range.
        RuntimeError: no convergence.
    """
    curvature = Curvature(loss, params, scale=scale)
    first = None if start is None else as_vector("start", start, curvature.params)
    values, vectors, products = largest(curvature.times, curvature.like, k, start=first, tolerance=tolerance)
    residuals = torch.stack([(curvature.times(v) - x * v).norm() for x, v in zip(values, vectors, strict=True)])
    spread = [_standard_error(curvature, v) if errors else math.nan for v in vectors]
    error = torch.tensor(spread, dtype=values.dtype)
    return Eigenpairs(values.cpu(), vectors, residuals.cpu(), error, products + len(values))


def largest(
    times: Callable[[Tensor], Tensor],
    like: Tensor,
    k: int = 1,
    *,
    start: Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The k largest eigenvalues of a symmetric operator on vectors like ``like``: values, vectors, products."""
    n = like.numel()
    if (wanted := as_integer(k)) is None or not 1 <= wanted <= n:
        reject("k", k, f"an integer from 1 to {n}, the number of parameter entries")
    if tolerance is None:
        tolerance = TOLERANCE.get(like.dtype, 1e-5)
    check_positive("tolerance", tolerance)
    if start is not None and not start.norm() > 0.0:
        reject("start", "a vector of zeros", "a vector with a direction")
    count = 0

    def product(vector: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return times(vector)

    if n <= max(DENSE, 2 * wanted):
        matrix = torch.stack([product(one.to(like)).double().cpu() for one in torch.eye(n, dtype=torch.float64)])
        found, columns = torch.linalg.eigh((matrix + matrix.T) / 2.0)
        values, vectors = found.flip(0)[:wanted], columns.T.flip(0)[:wanted]
    else:
        values, vectors = lanczos(product, _first(like, start), wanted, tolerance)
    return values.to(like), vectors.to(like), count


def _first(like: Tensor, start: Tensor | None) -> Tensor:
    """A vector to start from, in the dtype that is computed in."""
    found = next(random_vectors(like.to(compute_dtype(like.dtype)), 1, 0))
    if start is None:
        return found
    return found.mul_(MIXED_IN / found.norm()).add_(start.to(found) / start.to(found).norm())


def _standard_error(curvature: Curvature, vector: Tensor) -> float:
    if len(curvature.parts) == 1:
        return math.nan
    along = torch.tensor([dot(vector, product) for product in curvature.times_of_parts(vector)], dtype=torch.float64)
    return weighted_error(along, torch.tensor([weight for weight, _ in curvature.parts]).to(along))


def weighted_error(values: Tensor, weights: Tensor) -> float:
    """The standard error of the weighted mean of independent values; the weights sum to 1.

    >>> weighted_error(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 0.5]))
    1.0
    """
    n = len(values)
    if n < 2:
        return math.nan
    deviations = values - (weights * values).sum()
    return float((n / (n - 1) * (weights * deviations).square().sum()).sqrt())
