"""The spectral density of the Hessian by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.arguments import check_integer, check_positive
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import Curvature
from thalweg.landscape.estimates import Estimate, mean_of, random_vectors
from thalweg.landscape.lanczos import orthogonalise
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Coordinates, Vector, as_numbers


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """The density of eigenvalues: for each random vector the nodes and weights of a Gauss quadrature.

    Attributes:
        nodes: shape (vectors, steps), float64.
        weights: likewise; those of a vector sum to 1.
        size: the number of eigenvalues.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def moment(self, power: int) -> Estimate:
        """The mean of λ^power over all eigenvalues, tr(H^power) / n, with its standard error."""
        return mean_of((self.weights * self.nodes**power).sum(1))

    def below(self, value: float) -> Estimate:
        """The share of eigenvalues below a value, with its standard error."""
        return mean_of((self.weights * (self.nodes < value)).sum(1))

    def density(self, at: Coordinates, width: float) -> Tensor:
        """The density at each value, smoothed by a Gaussian of standard deviation ``width``; its integral is 1.

        Args:
            at: values, shape (m,).
            width: above 0.

        Returns:
            Shape (m,), float64.
        """
        check_positive("width", width)
        away = (as_numbers("at", at)[:, None] - self.nodes.reshape(-1)) / width
        weights = self.weights.reshape(-1) / len(self.weights)
        return (away.square() / -2.0).exp() @ weights / (width * math.sqrt(2.0 * math.pi))


@undisturbed()
def spectral_density(
    loss: Loss,
    params: Iterable[Tensor],
    *,
    steps: int = 50,
    vectors: int = 8,
    scale: Vector | None = None,
    seed: int = 0,
) -> SpectralDensity:
    """The spectral density of S H S, S = diag(scale), by stochastic Lanczos quadrature.

    For each of several random vectors z of norm 1, Lanczos' tridiagonal matrix gives zᵀ f(H) z exactly for polynomials
    f up to degree 2·steps - 1, whose mean over z is tr f(H) / n. It takes steps · vectors products, and keeps ``steps``
    vectors in memory, as all are made orthogonal to each other.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters.
        steps: of Lanczos, at least 1; no more than there are parameter entries are made.
        vectors: random vectors, at least 2.
        scale: a number for each parameter entry.
        seed: of the random vectors.

    Raises:
        ValueError: an argument outside its range.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> print(spectral_density(lambda: 3 * x[0] ** 2 + x[1] ** 2, [x], vectors=2).moment(1))
    4 ± 0
    """
    steps, vectors = check_integer("steps", steps, 1), check_integer("vectors", vectors, 2)
    curvature = Curvature(loss, params, scale=scale)
    steps = min(steps, curvature.size)
    found = [_quadrature(curvature, z, steps) for z in random_vectors(curvature.like, vectors, seed, signs=True)]
    nodes, weights = (torch.stack(each) for each in zip(*found, strict=True))
    return SpectralDensity(nodes, weights, curvature.size)


def _quadrature(curvature: Curvature, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Lanczos' matrix, and the squared first entries of its eigenvectors."""
    basis = start.new_empty(steps, len(start))
    torch.div(start, start.norm(), out=basis[0])
    matrix = torch.zeros(steps, steps, dtype=torch.float64)
    size = 0.0
    for j in range(steps):
        w = curvature.times(basis[j])
        size = max(size, float(w.norm()))
        matrix[j, j] = orthogonalise(w, basis[: j + 1])[j]
        norm = float(w.norm())
        if norm <= 100.0 * torch.finfo(w.dtype).eps * size:  # the vectors so far span an invariant subspace
            matrix = matrix[: j + 1, : j + 1]
            break
        if j + 1 < steps:
            matrix[j, j + 1] = matrix[j + 1, j] = norm
            torch.div(w, norm, out=basis[j + 1])
    values, vectors = torch.linalg.eigh(matrix)
    nodes, weights = torch.zeros(2, steps, dtype=torch.float64)  # those that are not there weigh nothing
    nodes[: len(values)], weights[: len(values)] = values, vectors[0].square()
    return nodes, weights
