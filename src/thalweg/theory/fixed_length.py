r"""Where LAMB's effective rate settles: orbits of steps whose length is given, and only their sign is chosen.

LAMB moves a layer by η φ(‖θ‖) along r, however small r is, so that it cannot come to rest in a valley. Along one
direction of curvature λ it walks to and fro, θ ← θ - s sign(m) with a length s, and m is what E and momentum make of
the gradients λθ. In an orbit of period 2N, N steps down and N up, θ is a triangle wave between ±Ns/2. The rate at which
these steps follow m in least squares is that of the momentum method which it equals on average:

.. math:: η = \frac{\sum_t u_t m_t}{\sum_t m_t^2} = s\,\frac{\sum_t |m_t|}{\sum_t m_t^2}, \qquad u = s\,\text{sign}(m),

the describing function of a relay. ηλ then depends on the period and the filter alone, not on s or λ. With N = 1 it is
:attr:`thalweg.theory.Crossings.flip`: the orbit that changes sign at every step has exactly the ηλ at which momentum
begins to.
"""

from __future__ import annotations

from typing import NamedTuple

from thalweg.arguments import check_integer, reject
from thalweg.theory.stability import check_filter, gain


class Orbit(NamedTuple):
    """An orbit of steps of a given length."""

    eta_lambda: float
    """ηλ, η the rate at which the steps follow m in least squares; no unit. Negative or meaningless unless it lasts."""
    lasts: bool
    """Whether m has the sign that the orbit supposes at each step; otherwise there is no such orbit."""


def fixed_length_orbit(period: int, alpha: float, beta: float, *, momentum: float = 0.0) -> Orbit:
    """The orbit of ``period`` steps, half of them down and half up, of E and momentum with steps of a given length.

    Args:
        period: steps of the orbit, an even number from 2.
        alpha: α of E, |α| < 1/(1-β1).
        beta: β1 of E, in [0, 1).
        momentum: β2 in [0, 1), as an EMA.

    Raises:
        ValueError: an argument outside its range, named with its value.

    >>> [round(fixed_length_orbit(period, 0.0, 0.0, momentum=0.9).eta_lambda, 1) for period in (2, 4, 6)]
    [38.0, 19.0, 9.7]
    """
    check_filter(alpha, beta, momentum, nesterov=False)
    if check_integer("period", period, 2) % 2:
        reject("period", period, "an even number from 2")
    half, c = period // 2, gain(alpha, beta)
    down = [half / 2.0 - step for step in range(half)]  # the second half is its negative
    average = _average(down, beta)
    before = [-average[-1], *average[:-1]]
    m = _average([(1.0 + c) * x - c * b for x, b in zip(down, before, strict=True)], momentum)
    return Orbit(sum(m) / sum(x * x for x in m), min(m) > 0.0)


def _average(half: list[float], beta: float) -> list[float]:
    """The EMA, with decay rate β, of a signal that is this and then its negative, for ever: its first half."""
    end = 0.0
    for x in half:
        end = beta * end + (1.0 - beta) * x
    found = [-end / (1.0 + beta ** len(half))]  # with which the last is the negative of the one before the first
    for x in half:
        found.append(beta * found[-1] + (1.0 - beta) * x)
    return found[1:]
