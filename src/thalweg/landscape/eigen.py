"""The largest eigenvalues of the Hessian, by Lanczos (SciPy's ``eigsh``) or LOBPCG, with two kinds of error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg
from torch import Tensor

from thalweg.arguments import check_choice, reject
from thalweg.landscape.derivatives import Curvature, Loss

DENSE = 40
"""Up to so many entries the Hessian is written down as a matrix."""
ROUGH = 1e-3
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


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


def hessian_eigenvalues(loss: Loss, params: Iterable[Tensor], k: int = 1) -> Tensor:
    """The k largest eigenvalues of the Hessian of a loss, descending.

    Args:
        loss: a closure that returns a scalar, always the same one; or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters by which it is differentiated, as in an optimizer.
        k: how many, at most as many as there are parameter entries.

    Returns:
        The eigenvalues λ_1 ≥ ... ≥ λ_k, shape (k,), in the dtype of the parameters, on the CPU. The largest are meant,
        not those largest in magnitude.

    Raises:
        ValueError: an argument outside its range, or a loss that is no finite scalar.
        RuntimeError: no convergence.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> hessian_eigenvalues(lambda: 3 * x[0] ** 2 - x[1] ** 2, [x], k=2)
    tensor([ 6., -2.])
    """
    return hessian_eigenpairs(loss, params, k).values


def hessian_eigenpairs(
    loss: Loss,
    params: Iterable[Tensor],
    k: int = 1,
    *,
    scale: Tensor | None = None,
    method: str = "lanczos",
    start: Tensor | None = None,
    tolerance: float | None = None,
    errors: bool = True,
) -> Eigenpairs:
    """The k largest eigenvalues of S H S with their eigenvectors and error bars; S = diag(scale).

    Args:
        loss: as in :func:`hessian_eigenvalues`, like ``params`` and ``k``.
        params: the parameters.
        k: how many.
        scale: a number for each entry: :func:`~thalweg.landscape.filter_scale` for filter-normalised sharpness.
        method: "lanczos" is SciPy's ``eigsh``, "lobpcg" its ``lobpcg``.
        start: a vector to start from, such as the eigenvector found last; None: a random one, always the same.
        tolerance: relative to the largest eigenvalue; None: 1e-9 in float64, 1e-5 in float32.
        errors: whether to spend one more pass over the sample for each eigenvalue on its standard error.

    Raises:
        ValueError: an argument outside its range.
        RuntimeError: no convergence.
    """
    check_choice("method", method, ("lanczos", "lobpcg"))
    curvature = Curvature(loss, params, scale=scale)
    values, vectors, products = largest(
        curvature.times, curvature.gradient, k, method=method, start=start, tolerance=tolerance
    )
    residuals = torch.stack([(curvature.times(v) - x * v).norm() for x, v in zip(values, vectors, strict=True)])
    spread = [_standard_error(curvature, v) if errors else math.nan for v in vectors]
    return Eigenpairs(values.cpu(), vectors, residuals.cpu(), torch.tensor(spread, dtype=values.dtype), products + k)


def largest(
    times: Callable[[Tensor], Tensor],
    like: Tensor,
    k: int = 1,
    *,
    method: str = "lanczos",
    start: Tensor | None = None,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The k largest eigenvalues of a symmetric operator on vectors like ``like``: values, vectors, products."""
    n = like.numel()
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n:
        reject("k", k, f"an integer from 1 to {n}, the number of parameter entries")
    if start is not None and start.shape != (n,):
        reject("start", tuple(start.shape), f"a vector of {n} entries")
    count = 0

    def product(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return times(torch.as_tensor(x.reshape(-1)).to(like)).double().cpu().numpy()

    if n <= max(DENSE, 2 * k):
        identity = torch.eye(n, dtype=torch.float64).numpy()
        matrix = np.stack([product(column) for column in identity])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    else:
        tolerance = TOLERANCE.get(like.dtype, 1e-5) if tolerance is None else tolerance
        first = np.random.default_rng(0).standard_normal((n, k))
        if start is not None:
            first[:, 0] = start.double().cpu().numpy()
        operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
        solve = _lanczos if method == "lanczos" else _lobpcg
        values, vectors = solve(operator, first, k, tolerance)
    order = np.argsort(values)[::-1][:k].copy()
    return _like(values[order], like), _like(vectors[:, order].T.copy(), like), count


def _lanczos(operator: LinearOperator, first: np.ndarray, k: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    n = operator.shape[0]
    if not operator.matvec(first[:, 0]).any():  # a linear loss, in which ARPACK finds nothing to begin with
        return np.zeros(k), np.eye(n, k)
    basis = 20 if tolerance < ROUGH else 8  # products before ARPACK first looks whether it is done
    try:
        values, vectors = eigsh(
            operator, k=k, which="LA", v0=first[:, 0], tol=tolerance, ncv=min(n, max(2 * k + 1, basis))
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(f"the {k} largest eigenvalues of {n} did not converge: {error}; try a tolerance") from None
    return values, vectors


def _lobpcg(operator: LinearOperator, first: np.ndarray, k: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    size = np.linalg.norm(operator.matvec(first[:, 0])) / np.linalg.norm(first[:, 0])
    values, vectors = lobpcg(operator, first, largest=True, tol=max(tolerance * size, 1e-300), maxiter=1000)
    residuals = np.stack([operator.matvec(v) for v in vectors.T]) - values[:, None] * vectors.T
    if (found := np.linalg.norm(residuals, axis=1).max()) > 100.0 * tolerance * max(np.abs(values).max(), size):
        raise RuntimeError(f"LOBPCG did not converge: a residual of {found:.2g}; try method='lanczos'")
    return values, vectors


def _like(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.as_tensor(array).to(like)


def _standard_error(curvature: Curvature, vector: Tensor) -> float:
    if len(curvature.parts) == 1:
        return math.nan
    along = torch.stack([vector @ product for product in curvature.times_of_parts(vector)])
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
