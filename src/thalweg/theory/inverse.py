"""From the stability limit that one wants, and so from a sharpness, to α."""

from __future__ import annotations

import math

from thalweg.arguments import check_beta, check_bool, check_positive
from thalweg.theory.stability import stability_limit


def alphas_for_limit(limit: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False) -> tuple[float, ...]:
    """Every α whose stability limit is ``limit`` at this β1, ascending: none, one or two.

    At the edge of stability the sharpness is the limit over η. So half the limit of the base alone halves the sharpness
    at an unchanged learning rate; see the example.

    Args:
        limit: the ηλ wanted, above 0.
        beta: β1 of E, in [0, 1).
        momentum: β2 in [0, 1), as an EMA.
        nesterov: whether the base's momentum is Nesterov's.

    Returns:
        The α's, each with |α| < 1/(1-β1).

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> alphas_for_limit(stability_limit(0.0, 0.0, momentum=0.5) / 2, beta=0.5, momentum=0.5)
    (-1.0, 1.5)
    """
    check_positive("limit", limit)
    check_beta("beta", beta)
    check_beta("momentum", momentum)
    check_bool("nesterov", nesterov)
    p = momentum * nesterov
    flip = (1.0 + beta) * (1.0 + momentum) / (limit * (1.0 - momentum) * (1.0 + 2.0 * p)) - (1.0 + beta) / 2.0
    gains = [flip, *_rotating_gains(limit, beta, momentum, p)]
    alphas = sorted(c / (1.0 - beta) for c in gains if abs(c) < 1.0)
    return tuple(
        alpha
        for alpha in alphas
        if abs(alpha) * (1.0 - beta) < 1.0
        and math.isclose(stability_limit(alpha, beta, momentum=momentum, nesterov=nesterov), limit, rel_tol=1e-6)
    )


def _rotating_gains(limit: float, beta: float, momentum: float, p: float) -> tuple[float, ...]:
    """The c at which the rotation of :func:`thalweg.theory.crossings` is at ``limit``: roots of a quadratic."""
    both, x = 1.0 - beta * momentum, limit * (1.0 - momentum)
    apart = beta + momentum - 2.0 * beta * momentum
    constant = (1.0 - beta) * both + limit * (beta * (1.0 - momentum) + p * (both - beta * apart))
    constant += limit * p * beta * x * (1.0 + p * (1.0 - beta))
    linear = limit * (both + p * (both - apart) + p * x * (1.0 + p * (1.0 - beta) + beta))
    quadratic = limit * p * x
    if quadratic == 0.0:
        return (-constant / linear,)
    discriminant = linear * linear - 4.0 * quadratic * constant
    if discriminant < 0.0:
        return ()
    q = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2.0
    return q / quadratic, constant / q
