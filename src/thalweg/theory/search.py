"""The α and β1 that damp fastest, by a search. Needs NumPy and SciPy."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from scipy.optimize import minimize

from thalweg.arguments import check_beta, check_bool, check_positive, reject
from thalweg.theory.stability import spectral_radius

if TYPE_CHECKING:
    from collections.abc import Iterable


class Fastest(NamedTuple):
    """The α and β1 that damp fastest, and the damping that they reach."""

    alpha: float
    beta: float
    damping: float


def fastest_damping(eta_lambda: float | Iterable[float], *, momentum: float = 0.0, nesterov: bool = False) -> Fastest:
    """The α and β1 at which the slowest mode of all the given ηλ is damped fastest.

    By a search, with SciPy: a grid over the gain c in (-1, 1) and horizons up to 1,000 steps, its best points refined.

    Args:
        eta_lambda: one ηλ > 0 or several, learning rate (of momentum as an EMA) times the curvatures that matter.
        momentum: β2 in [0, 1), as an EMA.
        nesterov: whether the base's momentum is Nesterov's.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> alpha, beta, damping = fastest_damping([0.02, 2.0])
    >>> beta > 0 > alpha and damping > 0.02  # a heavy average, instead of the momentum that is missing
    True
    """
    values = (
        (cast("float", eta_lambda),) if isinstance(eta_lambda, Real) else tuple(cast("Iterable[float]", eta_lambda))
    )
    if not values:
        reject("eta_lambda", eta_lambda, "a number in (0, inf) or several")
    for value in values:
        check_positive("eta_lambda", value)
    check_beta("momentum", momentum)
    check_bool("nesterov", nesterov)

    def worst(c: float, log_horizon: float) -> float:
        """The largest spectral radius; inf outside the range."""
        if not (abs(c) < 0.9999 and 0.0 <= log_horizon <= 3.0):
            return math.inf
        beta = 1.0 - 10.0**-log_horizon
        alpha = c / (1.0 - beta)
        return max(spectral_radius(x, alpha, beta, momentum=momentum, nesterov=nesterov) for x in values)

    grid = [(c, h) for c in np.linspace(-0.99, 0.99, 34).tolist() for h in np.linspace(0.0, 3.0, 25).tolist()]
    grid.append((0.0, 0.0))  # the base alone
    starts = sorted(grid, key=lambda point: worst(*point))[:3]
    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 2000}
    found = [minimize(lambda v: worst(*v), start, method="Nelder-Mead", options=options) for start in starts]
    best = min(found, key=lambda result: float(result.fun))
    c, log_horizon = map(float, best.x)
    beta = 1.0 - 10.0**-log_horizon
    return Fastest(c / (1.0 - beta), beta, -math.log(best.fun) if best.fun > 0.0 else math.inf)
