"""Maps over (α, β1): any quantity of this package, at every point of a grid. Needs NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


def map_over(
    quantity: Callable[[float, float], float], alphas: Sequence[float], betas: Sequence[float]
) -> NDArray[np.float64]:
    """``quantity(alpha, beta)`` on a grid, NaN where |α| ≥ 1/(1-β1).

    Args:
        quantity: such as ``functools.partial(stability_limit, momentum=0.9)``.
        alphas: α of the columns.
        betas: β1 of the rows, each in [0, 1).

    Returns:
        float64, of shape (len(betas), len(alphas)).

    >>> from thalweg.theory import stability_limit
    >>> map_over(stability_limit, alphas=[0.0, 0.5, 1.0], betas=[0.0])
    array([[ 2.,  1., nan]])
    """
    return np.array(
        [
            [quantity(a, b) if abs(a) * (1.0 - b) < 1.0 else np.nan for a in map(float, alphas)]
            for b in map(float, betas)
        ],
        dtype=np.float64,
    )
