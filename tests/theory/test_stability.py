"""The stability limit against eigenvalues, against published formulas, and at the edges of its range."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
from theory_settings import one_step, radius, random_settings

from thalweg.theory import crossings, damping, spectral_radius, stability_limit
from thalweg.theory.stability import swing_period

SETTINGS = [
    *random_settings(150, seed=0),
    *random_settings(150, seed=1, nesterov=True),
    *random_settings(100, seed=2, momentum=(0.0, 0.0)),
]


def test_the_map_leaves_the_unit_circle_at_the_limit_and_not_before():
    for s in SETTINGS:
        limit = stability_limit(s.alpha, s.beta, **s.base)
        assert max(radius(limit * f, s) for f in np.linspace(1e-3, 0.999, 40)) < 1.0, s
        assert radius(limit * 1.001, s) > 1.0, s


def test_the_eigenvalue_that_leaves_does_so_where_it_is_said_to():
    seen = set()
    for s in SETTINGS:
        found = crossings(s.alpha, s.beta, **s.base)
        values = np.linalg.eigvals(one_step(min(found), s))
        at = values[np.abs(values).argmax()]
        assert abs(abs(at) - 1.0) < 1e-5, s
        if found.flip < found.rotation:
            assert abs(at + 1.0) < 1e-4, s
        else:
            period = swing_period(found.rotation, s.alpha, s.beta, **s.base)
            assert abs(np.angle(at)) == pytest.approx(2 * math.pi / period, rel=1e-3), s
        seen.add((found.flip < found.rotation, s.nesterov, s.momentum > 0.0))
    assert len(seen) == 6


@pytest.mark.parametrize("share", [0.01, 0.5, 1.1])
def test_the_spectral_radius_is_the_largest_eigenvalue(share):
    for s in SETTINGS:
        x = share * stability_limit(s.alpha, s.beta, **s.base)
        assert spectral_radius(x, s.alpha, s.beta, **s.base) == pytest.approx(radius(x, s), rel=1e-5), s
        assert damping(x, s.alpha, s.beta, **s.base) == pytest.approx(-math.log(radius(x, s)), rel=1e-4, abs=1e-5), s


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99, 1 - 1e-9])
def test_published_limits(momentum):
    known = 2 * (1 + momentum) / (1 - momentum)
    assert stability_limit(0.0, 0.99, momentum=momentum) == pytest.approx(known)  # GD, heavy ball; 38 for Adam at .9
    nesterov = known / (1 + 2 * momentum)  # Sutskever et al. 2013, with momentum written as an average
    assert stability_limit(0.0, 0.3, momentum=momentum, nesterov=True) == pytest.approx(nesterov)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("nu", [0.0, 0.3, 0.7, 1.0])
def test_the_limit_of_quasi_hyperbolic_momentum(beta, nu):
    # Gitman et al. 2019, arXiv 1910.13962: 0 < ηλ < 2(1+β)/(1+β(1-2ν))
    assert stability_limit(-nu * beta / (1 - beta), beta) == pytest.approx(2 * (1 + beta) / (1 + beta * (1 - 2 * nu)))


@pytest.mark.parametrize(
    ("alpha", "beta", "momentum", "limit"),
    [
        (0.5, 0.01, 0.0, 1.01),
        (0.5, 0.0, 0.0, 1.0),  # Adams-Bashforth 2
        (1.0, 0.5, 0.0, 1.2),
        (5.0, 0.9, 0.0, 1.31),
        (-5.0, 0.99, 0.0, 2.1),
        (-0.6, 0.5, 0.0, 3.33),
        (-3.0, 0.9, 0.0, 2.92),
        (-8.0, 0.9, 0.0, 12.67),
        (0.0, 0.0, 0.9, 38.0),
        (0.5, 0.01, 0.9, 19.2),
        (3.0, 0.75, 0.9, 20.5),
        (-5.0, 0.99, 0.9, 40.0),
        (-0.4, 0.5, 0.9, 4.58),
        (-1.2, 0.75, 0.9, 3.61),
        (-3.0, 0.75, 0.9, 0.481),
    ],
)
def test_numbers_on_record(alpha, beta, momentum, limit):
    assert stability_limit(alpha, beta, momentum=momentum) == pytest.approx(limit, rel=3e-3)


def test_where_the_flip_alone_would_be_ten_times_wrong():
    flip, rotation = crossings(-0.4, 0.5, momentum=0.9)
    assert flip == pytest.approx(51.82, rel=1e-3)
    assert rotation == pytest.approx(0.275 / 0.06)
    assert stability_limit(-0.4, 0.5, momentum=0.9) == rotation


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("c", [-1 + 1e-12, 1 - 1e-12, -0.5, 0.5])
def test_at_the_edges_of_the_range_fifty_digits_agree(c, nesterov):
    for beta, momentum in itertools.product([0.0, 1e-9, 0.5, 0.999999], [0.0, 0.5, 1 - 1e-6]):
        limit = stability_limit(c / (1 - beta), beta, momentum=momentum, nesterov=nesterov)
        assert 0.0 < limit < math.inf
        below, above = (exact_radius(limit * f, c / (1 - beta), beta, momentum, nesterov) for f in (0.999, 1.001))
        assert below < 1 < above, (beta, momentum)


def exact_radius(x: float, alpha: float, beta: float, momentum: float, nesterov: bool) -> mpmath.mpf:
    with mpmath.workdps(50):
        a, b, m, x = map(mpmath.mpf, (alpha, beta, momentum, x))
        ahead, behind, p = 1 + a * (1 - b), b + a * (1 - b), m if nesterov else mpmath.mpf(0)
        without = [1, -(1 + b + m), b + m + b * m, -b * m]
        gradient = [0, (1 + p) * ahead, -((1 + p) * behind + p * ahead), p * behind]
        coefficients = [d + x * (1 - m) * g for d, g in zip(without, gradient, strict=True)]
        return max(map(abs, mpmath.polyroots(coefficients, maxsteps=500, extraprec=400)))


def test_deadbeat_has_infinite_damping():
    assert damping(1.0, 0.0, 0.0) == math.inf


@pytest.mark.parametrize("function", [stability_limit, crossings, lambda *a, **k: damping(1.0, *a, **k)])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 1.0}, "beta must be a number in [0, 1), got 1.0"),
        ({"beta": -0.1}, "beta must be a number in [0, 1), got -0.1"),
        ({"beta": "a"}, "beta must be a number in [0, 1), got 'a'"),
        ({"beta": True}, "beta must be a number in [0, 1), got True"),
        ({"alpha": 2.0}, "alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got 2.0"),
        ({"alpha": math.nan}, "alpha must be a number in (-2, 2), as |alpha| < 1/(1 - beta) with beta=0.5, got nan"),
        ({"momentum": 1.0}, "momentum must be a number in [0, 1), got 1.0"),
        ({"momentum": None}, "momentum must be a number in [0, 1), got None"),
        ({"nesterov": 1}, "nesterov must be True or False, got 1"),
    ],
)
def test_bad_input(function, arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared whole)
        function(**{"alpha": 0.5, "beta": 0.5, **arguments})
    assert str(error.value) == message


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "1", None])
def test_bad_eta_lambda(value):
    with pytest.raises(ValueError, match=rf"^eta_lambda must be a number in \[0, inf\), got {value!r}$"):
        spectral_radius(value, 0.0, 0.0)


def test_numbers_of_numpy_count():
    assert stability_limit(np.float64(0.5), np.float32(0.0)) == stability_limit(0.5, 0.0)
