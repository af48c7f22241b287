r"""Which learning rates are stable, and how fast errors die out.

Along a direction of curvature λ the gradient is λθ, and E in front of momentum, with learning rate η, is a linear map
of (θ, m, b). With x = ηλ, the gain c = α(1-β1), the momentum β2 as an EMA, and m and b in units of λ:

.. math::
    m' &= β_2 m + (1-β_2)\,((1+c)\,θ - c\,b) \\
    b' &= β_1 b + (1-β_1)\,θ \\
    θ' &= θ - x\,m'

Its eigenvalues are the roots of

.. math:: (z-1)(z-β_1)(z-β_2) + x\,(1-β_2)\,z\,\bigl((1+c)\,z - (β_1+c)\bigr),

with :math:`(1+β_2)z - β_2` in place of the single z for Nesterov's momentum (θ' = θ - x (β2 m' + (1-β2) g'), as in
:class:`torch.optim.SGD` and NAdam). For x just above 0 all are inside the unit circle. As x grows, the first to
reach it gets there in one of two ways (:func:`crossings`), each at an x in closed form.

The same holds behind a preconditioner that changes slowly, for the curvature that the optimizer sees: for Adam the
eigenvalues of D^(-1/2) H D^(-1/2), D = √v̂ + ε (arXiv 2207.14484), for LAMB and ALTO these times the trust ratio of the
layer.

No imports beyond Python's own: optimizers call this when they are made.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from thalweg.arguments import check_beta, check_bool, check_exploration, check_nonnegative


class Crossings(NamedTuple):
    """The two values of ηλ at which an eigenvalue can reach the unit circle; the smaller is the stability limit."""

    flip: float
    """At z = -1: the iterates change sign each step. inf if there is no such ηλ."""
    rotation: float
    """As a complex pair: the iterates swing, over several steps. inf if there is no such ηλ."""


def check_filter(alpha: float, beta: float, momentum: float, nesterov: bool) -> None:
    """Raise ``ValueError`` for the first of these that is out of range."""
    check_exploration(alpha, beta)
    check_beta("momentum", momentum)
    check_bool("nesterov", nesterov)


def gain(alpha: float, beta: float) -> float:
    """The gain c = α(1-β1): the gradient passed on is g + c (g - b).

    >>> gain(alpha=-5.0, beta=0.5)
    -2.5
    """
    return alpha * (1.0 - beta)


def characteristic_polynomial(
    eta_lambda: float, alpha: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False
) -> tuple[float, float, float]:
    """The coefficients (p2, p1, p0) of z³ + p2 z² + p1 z + p0, whose roots are the eigenvalues of the map.

    >>> characteristic_polynomial(0.5, 0.0, 0.0)  # gradient descent, z²(z - 1/2)
    (-0.5, 0.0, 0.0)
    """
    c, x, p = gain(alpha, beta), eta_lambda * (1.0 - momentum), momentum * nesterov
    ahead, behind = 1.0 + c, beta + c
    p2 = x * (1.0 + p) * ahead - (1.0 + beta + momentum)
    p1 = beta + momentum + beta * momentum - x * ((1.0 + p) * behind + p * ahead)
    p0 = x * p * behind - beta * momentum
    return p2, p1, p0


def spectral_radius(
    eta_lambda: float, alpha: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False
) -> float:
    """The largest magnitude ρ of the map's eigenvalues: in the long run errors shrink, or grow, by ρ a step.

    Args:
        eta_lambda: ηλ ≥ 0, learning rate (of momentum as an EMA, θ ← θ - ηm) times curvature; no unit.
        alpha: α of E, |α| < 1/(1-β1).
        beta: β1 of E, in [0, 1).
        momentum: β2 in [0, 1), the decay rate of the base's momentum, 0 if it has none.
        nesterov: whether the base's momentum is Nesterov's.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> round(spectral_radius(0.25, 0.0, 0.0), 12)  # gradient descent: 1 - ηλ
    0.75
    """
    check_nonnegative("eta_lambda", eta_lambda)
    check_filter(alpha, beta, momentum, nesterov)
    p2, p1, p0 = characteristic_polynomial(eta_lambda, alpha, beta, momentum=momentum, nesterov=nesterov)
    if p2 == p1 == p0 == 0.0:
        return 0.0
    low, high = 0.0, 1.0 + max(abs(p2), abs(p1), abs(p0))  # Cauchy's bound
    while low < (middle := (low + high) / 2.0) < high and high - low > 1e-17:
        if _inside_unit_circle(p2 / middle, p1 / middle**2, p0 / middle**3):
            high = middle
        else:
            low = middle
    return high


def _inside_unit_circle(p2: float, p1: float, p0: float) -> bool:
    """Whether all roots of z³ + p2 z² + p1 z + p0 are: the criterion of Schur, Cohn and Jury."""
    at_one, at_minus_one = 1.0 + p2 + p1 + p0, 1.0 - p2 + p1 - p0
    return at_one > 0.0 and at_minus_one > 0.0 and abs(p0) < 1.0 and 1.0 - p0 * p0 - p1 + p2 * p0 > 0.0


def damping(eta_lambda: float, alpha: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The rate -ln ρ of the slowest mode, per step: in the long run errors fall by a factor e^damping each step.

    Errors halve in ln 2 / damping steps; they grow where damping is negative. Arguments and errors are those of
    :func:`spectral_radius`.

    >>> round(damping(0.5, 0.0, 0.0), 4)  # gradient descent halves the error
    0.6931
    """
    radius = spectral_radius(eta_lambda, alpha, beta, momentum=momentum, nesterov=nesterov)
    return -math.log(radius) if radius > 0.0 else math.inf


def crossings(alpha: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False) -> Crossings:
    r"""Both values of ηλ at which an eigenvalue can reach the unit circle, in closed form.

    .. math::
        \text{flip} &= 2\,\frac{1+β_2}{1-β_2}\,\frac{1+β_1}{1+β_1+2c}
            && \text{if } c > -\frac{1+β_1}{2} \\
        \text{rotation} &= \frac{(1-β_1)(1-β_1β_2)}{-c\,(1-β_1β_2) - β_1(1-β_2)}
            && \text{if } c < -\frac{β_1(1-β_2)}{1-β_1β_2}

    and inf otherwise. So only c < 0 can rotate. Nesterov's momentum divides the flip by 1 + 2 β2, and its rotation is
    the smaller positive root of a quadratic. Where a flip is above the rotation, or the other way round, roots are
    outside the circle already: only the smaller of the two is a limit.

    Arguments and errors are those of :func:`spectral_radius`.

    >>> flip, rotation = crossings(-0.4, 0.5, momentum=0.9)
    >>> round(flip, 2), round(rotation, 2)
    (51.82, 4.58)
    """
    check_filter(alpha, beta, momentum, nesterov)
    c, p = gain(alpha, beta), momentum * nesterov
    flip = rotation = math.inf
    if (slope := 1.0 + beta + 2.0 * c) > 0.0:
        flip = 2.0 * (1.0 + beta) * (1.0 + momentum) / ((1.0 - momentum) * (1.0 + 2.0 * p) * slope)
    # Of a polynomial with roots r, s and t, (1-rs)(1-rt)(1-st) = 1 - p0² - p1 + p2 p0, which here is, over 1-β2,
    # constant + linear x + quadratic x². It first vanishes where a complex pair has the product 1.
    both = 1.0 - beta * momentum
    constant = (1.0 - beta) * both
    linear = beta * (1.0 - momentum) + c * both
    linear += p * ((1.0 + c) * both - (beta + c) * (beta + momentum - 2.0 * beta * momentum))
    quadratic = p * (beta + c) * (1.0 + c + p * (1.0 - beta)) * (1.0 - momentum)
    if (discriminant := linear * linear - 4.0 * constant * quadratic) >= 0.0:
        # of the two forms of the root the one without cancellation, as constant > 0
        if linear <= 0.0 and (denominator := math.sqrt(discriminant) - linear) > 0.0:
            rotation = 2.0 * constant / denominator
        elif linear > 0.0 and quadratic < 0.0:
            rotation = (linear + math.sqrt(discriminant)) / (-2.0 * quadratic)
    return Crossings(flip, rotation)


def stability_limit(alpha: float, beta: float, *, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The largest ηλ of E in front of momentum: the spectral radius is below 1 on all of (0, limit), then above.

    The smaller of the two :func:`crossings`. Full-batch training at a constant learning rate η drives the sharpness,
    the largest λ, up to about this number over η, and keeps it there. 2 for gradient descent, 38 for momentum 0.9.

    Args:
        alpha: α of E, |α| < 1/(1-β1).
        beta: β1 of E, in [0, 1).
        momentum: β2 in [0, 1), as an EMA (θ ← θ - ηm, as in Adam, LAMB and ALTO); 0 if the base has none. The momentum
            of :class:`torch.optim.SGD` and RMSprop is a sum: there η is their ``lr`` over (1 - momentum).
        nesterov: whether the base's momentum is Nesterov's, as SGD's with ``nesterov=True`` or NAdam's.

    Returns:
        The largest ηλ, a number above 0 without unit.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> stability_limit(0.0, 0.0), round(stability_limit(-0.4, 0.5, momentum=0.9), 2)
    (2.0, 4.58)
    """
    return min(crossings(alpha, beta, momentum=momentum, nesterov=nesterov))


def swing_period(eta_lambda: float, alpha: float, beta: float, *, momentum: float, nesterov: bool = False) -> float:
    """Steps in which the iterates swing to and fro once, at an ηλ that is the rotation of :func:`crossings`.

    >>> round(swing_period(4.583, -0.4, 0.5, momentum=0.9), 1)
    9.6
    """
    p2, _, p0 = characteristic_polynomial(eta_lambda, alpha, beta, momentum=momentum, nesterov=nesterov)
    cosine = (p0 - p2) / 2.0  # the pair has the product 1, so the third root is -p0, and the sum of all is -p2
    return 2.0 * math.pi / math.acos(min(max(cosine, -1.0), 1.0))
