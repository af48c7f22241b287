"""The trace of the Hessian from products with random vectors, by Hutch++."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thalweg.arguments import check_integer
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import Curvature
from thalweg.landscape.estimates import Estimate, mean_of, random_vectors
from thalweg.landscape.samples import Loss
from thalweg.landscape.vectors import Vector, dot, full_precision


@undisturbed()
def hessian_trace(
    loss: Loss,
    params: Iterable[Tensor],
    products: int = 60,
    *,
    scale: Vector | None = None,
    seed: int = 0,
) -> Estimate:
    """An unbiased estimate of tr(S H S), S = diag(scale), with its standard error.

    Hutch++ (Meyer et al. 2021) takes the trace exactly on the span of a third of the products, where the largest
    eigenvalues are, and that of the rest by Hutchinson's mean of zᵀHz over random signs z: much better than the latter
    alone where few eigenvalues are large, as in trained networks.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        params: the parameters.
        products: how many products with the Hessian to spend, at least 6.
        scale: a number for each parameter entry.
        seed: of the random vectors.

    Raises:
        ValueError: an argument outside its range.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> print(hessian_trace(lambda: 3 * x[0] ** 2 + x[1] ** 2, [x]))
    8 ± 0
    """
    products = check_integer("products", products, 6)
    return trace_of(Curvature(loss, params, scale=scale), products, seed)


def trace_of(curvature: Curvature, products: int, seed: int) -> Estimate:
    """That of a curvature."""
    third = products // 3
    drawn = list(random_vectors(curvature.like, 2 * third, seed, signs=True))
    sketch = torch.stack([curvature.times(z) for z in drawn[:third]], dim=1)
    basis = torch.linalg.qr(sketch)[0]
    on_basis = sum(dot(q, curvature.times(q)) for q in basis.T)
    if basis.shape[1] >= curvature.size:
        return Estimate(on_basis, 0.0, products)
    with full_precision(basis):
        rest = [z - basis @ (basis.T @ z) for z in drawn[third:]]
    left = mean_of(torch.tensor([dot(z, curvature.times(z)) for z in rest], dtype=torch.float64))
    return Estimate(on_basis + left.value, left.standard_error, products)
