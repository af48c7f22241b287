"""The largest eigenvalues of a symmetric operator, by restarted Lanczos in little memory.

Thick restarts (Wu and Simon 2000): the basis has a few vectors, all orthogonal to each other; when it is full it is
reduced to the best Ritz vectors, and grows again. Its vectors are in the dtype of the operator, at least float32; what
is small is in float64, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.landscape.estimates import random_vectors
from thalweg.landscape.vectors import full_precision

ROOM = 6
"""Vectors in the basis for one eigenvalue."""
PATIENCE = 8
"""Products between a random vector and the first test of convergence."""
ROOM_FOR_SEVERAL = 20
CHUNK = 1 << 16  # entries of all vectors that are rotated at a time
RESTARTS = 2000


def lanczos(
    times: Callable[[Tensor], Tensor], start: Tensor, k: int, tolerance: float, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues with their eigenvectors.

    Where the vectors so far span an invariant subspace, it continues with a random vector orthogonal to them, until k
    such subspaces were found or one had nothing larger. So eigenvalues are found as often as they occur.

    Args:
        times: the operator, on vectors like ``start``.
        start: a vector with a part in every direction that matters.
        k: how many, at least 1 and at most as many as there are entries.
        tolerance: of the residuals, relative to the largest eigenvalue.
        seed: of the random vectors.

    Returns:
        The values, descending, float64, shape (k,); the vectors, shape (k, entries), of norm 1.

    Raises:
        RuntimeError: no convergence.
    """
    n = len(start)
    room = min(n, ROOM if k == 1 else max(2 * k + 1, ROOM_FOR_SEVERAL))
    eps, patience = torch.finfo(start.dtype).eps, min(n, PATIENCE)
    fresh = random_vectors(start.new_empty(()).expand(n), 10 * n, seed)
    basis = start.new_empty(room, n)
    torch.div(start, start.norm(), out=basis[0])
    del start
    matrix = torch.zeros(room, room, dtype=torch.float64)
    filled, since, subspaces, size, before = 0, 0, 0, 0.0, -torch.inf
    for _ in range(RESTARTS * room):
        w = times(basis[filled]).to(basis.dtype)
        filled, since, size = filled + 1, since + 1, max(size, float(w.norm()))
        matrix[filled - 1, :filled] = matrix[:filled, filled - 1] = orthogonalise(w, basis[:filled])
        left = float(w.norm())
        values, rotation = (found.flip(-1) for found in torch.linalg.eigh(matrix[:filled, :filled]))
        close = max(tolerance * float(values[:k].abs().max()), 10.0 * eps * size)
        if is_invariant := left <= 100.0 * eps * size:
            subspaces += 1
            kth = float(values[k - 1]) if filled >= k else -torch.inf
            if filled == n or (filled >= k and (subspaces >= k or kth <= before + close)):
                break
            since, before = 0, kth
        elif filled >= k and since >= patience and float((left * rotation[-1, :k]).abs().max()) <= close:
            break
        if filled == room:
            filled = k + (room - k) // 2
            _rotate(basis, rotation[:, :filled])
            matrix[:filled, :filled] = values[:filled].diag()
        if is_invariant:
            w = next(fresh)
            orthogonalise(w, basis[:filled])
            left = float(w.norm())
        torch.div(w, left, out=basis[filled])
        del w
    else:
        raise RuntimeError(f"the {k} largest eigenvalues of {n} did not converge; try a tolerance")
    _rotate(basis, rotation[:, :k])
    return values[:k], basis[:k].clone()


def orthogonalise(w: Tensor, basis: Tensor) -> Tensor:
    """Take from ``w``, in place, its parts along the rows of a basis; return what they were, float64, on the CPU."""
    with full_precision(w):
        along = basis @ w
        w.addmv_(basis.T, along, alpha=-1.0)
        again = basis @ w  # once leaves rounding errors that grow
        w.addmv_(basis.T, again, alpha=-1.0)
    return along.double().cpu() + again.double().cpu()


def _rotate(basis: Tensor, rotation: Tensor) -> None:
    """Replace the first rows of a basis by combinations of its rows, one a column of ``rotation``."""
    rows, columns = rotation.shape
    turn = rotation.T.to(basis)
    with full_precision(basis):
        for piece in torch.split(basis, CHUNK, dim=1):
            piece[:columns] = turn @ piece[:rows]
