"""From a limit back to α, and the fastest damping."""

from __future__ import annotations

import math

import numpy as np
import pytest
from theory_settings import random_settings

from thalweg.theory import alphas_for_limit, damping, fastest_damping, nesterov_instead_of_momentum, stability_limit


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_limit_leads_back_to_alpha(nesterov):
    for s in random_settings(300, seed=3, nesterov=nesterov):
        limit = stability_limit(s.alpha, s.beta, **s.base)
        alphas = alphas_for_limit(limit, s.beta, **s.base)
        assert min(abs(alpha - s.alpha) for alpha in alphas) < 1e-6 * max(1.0, abs(s.alpha)), s
        assert list(alphas) == sorted(alphas)
        for alpha in alphas:
            assert stability_limit(alpha, s.beta, **s.base) == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_every_alpha_is_found(momentum, beta):
    """As often as a fine scan of α crosses the limit."""
    wanted = 0.5 * stability_limit(0.0, 0.0, momentum=momentum)
    scan = np.linspace(-1, 1, 20001)[1:-1] / (1 - beta)
    above = np.array([stability_limit(alpha, beta, momentum=momentum) > wanted for alpha in scan])
    assert len(alphas_for_limit(wanted, beta, momentum=momentum)) == np.count_nonzero(above[1:] != above[:-1])


def test_no_alpha_reaches_any_limit():
    assert alphas_for_limit(100.0, 0.0) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0.0}, "limit must be a number in (0, inf), got 0.0"),
        ({"beta": 1.0}, "beta must be a number in [0, 1), got 1.0"),
        ({"momentum": -1}, "momentum must be a number in [0, 1), got -1"),
        ({"nesterov": None}, "nesterov must be True or False, got None"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared whole)
        alphas_for_limit(**{"limit": 1.0, "beta": 0.5, **arguments})
    assert str(error.value) == message


def test_one_curvature_beyond_1_is_damped_at_once_by_nesterov():
    """z² is the characteristic polynomial at β1 = 1 - 1/ηλ, c = -β1²."""
    alpha, beta, found = fastest_damping(2.5)
    assert (alpha, beta) == (pytest.approx(-0.9, abs=1e-4), pytest.approx(0.6, abs=1e-4))
    assert (alpha, beta) == pytest.approx(tuple(nesterov_instead_of_momentum(0.6)), abs=1e-4)
    assert found > 5.0


@pytest.mark.parametrize(
    ("values", "base"),
    [
        (0.5, {}),
        ([0.02, 2.0], {}),
        ([0.05, 10.0], {"momentum": 0.9}),
        ([0.05, 4.0], {"momentum": 0.8, "nesterov": True}),
    ],
)
def test_nothing_on_a_grid_damps_faster(values, base):
    alpha, beta, found = fastest_damping(values, **base)
    several = [values] if isinstance(values, float) else values

    def slowest(alpha: float, beta: float) -> float:
        return min(damping(x, alpha, beta, **base) for x in several)

    assert found == pytest.approx(slowest(alpha, beta), rel=1e-6)
    betas = [0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99]
    best = max(slowest(c / (1 - b), b) for b in betas for c in np.linspace(-1, 1, 81)[1:-1])
    assert found > best - 1e-6


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.0"), ([1.0, -1.0], "-1.0"), (math.nan, "nan")])
def test_bad_curvature(value, shown):
    with pytest.raises(ValueError, match=rf"^eta_lambda must be a number in \(0, inf\), got {shown}$"):
        fastest_damping(value)


def test_no_curvature():
    with pytest.raises(ValueError, match=r"^eta_lambda must be a number in \(0, inf\) or several, got \[\]$"):
        fastest_damping([])
