"""Orbits of steps of a given length, against the loop of sign, E and momentum itself."""

from __future__ import annotations

import math

import pytest
from theory_settings import random_settings

from thalweg.theory import crossings, fixed_length_orbit

SETTINGS = [(0.0, 0.0, 0.0), (0.0, 0.0, 0.9), (0.5, 0.01, 0.9), (-5.0, 0.99, 0.9), (-0.6, 0.5, 0.9), (3.0, 0.75, 0.5)]


class Loop:
    """E and momentum, and θ ← θ - s sign(m), with the signs of an orbit at first and m's own from then on."""

    def __init__(self, alpha, beta, momentum, curvature, length):
        self.c, self.beta, self.momentum = alpha * (1 - beta), beta, momentum
        self.curvature, self.length = curvature, length
        self.theta = self.m = self.b = 0.0

    def step(self, sign=None):
        g = self.curvature * self.theta
        h = g + self.c * (g - self.b)
        self.b = self.beta * self.b + (1 - self.beta) * g
        self.m = self.momentum * self.m + (1 - self.momentum) * h
        taken = math.copysign(1.0, self.m) if sign is None else sign
        self.theta -= self.length * taken
        return taken


@pytest.mark.parametrize(("alpha", "beta", "momentum"), SETTINGS)
@pytest.mark.parametrize("period", [2, 4, 6, 10, 16])
def test_an_orbit_lasts_and_has_its_rate_in_the_loop_itself(alpha, beta, momentum, period):
    found = fixed_length_orbit(period, alpha, beta, momentum=momentum)
    loop, half = Loop(alpha, beta, momentum, curvature=7.0, length=0.3), period // 2
    wave = [1.0] * half + [-1.0] * half
    loop.theta = loop.length * half / 2
    for _ in range(4000 // period):  # until the filter has forgotten its start
        for sign in wave:
            loop.step(sign)
    seen, moments = [], []
    for _ in range(period):
        seen.append(loop.step())
        moments.append(loop.m)
    assert (seen == wave) is found.lasts
    if found.lasts:
        rate = loop.length * sum(map(abs, moments)) / sum(m * m for m in moments)
        assert found.eta_lambda == pytest.approx(7.0 * rate, rel=1e-9)


def test_both_kinds_of_answers_are_among_these():
    found = {
        (period, setting): fixed_length_orbit(period, *setting[:2], momentum=setting[2]).lasts
        for period in (4, 16)
        for setting in SETTINGS
    }
    assert set(found.values()) == {True, False}


def test_the_orbit_that_changes_sign_each_step_is_at_the_flip():
    for s in random_settings(100, seed=3):
        flip = crossings(s.alpha, s.beta, momentum=s.momentum).flip
        found = fixed_length_orbit(2, s.alpha, s.beta, momentum=s.momentum)
        assert found.lasts is (flip < math.inf)
        if found.lasts:
            assert found.eta_lambda == pytest.approx(flip, rel=1e-9), s


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("period must be an even number from 2, got 3", {"period": 3}),
        ("period must be an integer .*, got 0", {"period": 0}),
        ("beta must be .*, got 1.0", {"beta": 1.0}),
        ("momentum must be .*, got -0.1", {"momentum": -0.1}),
    ],
)
def test_bad_input(says, arguments):
    with pytest.raises(ValueError, match=says):
        fixed_length_orbit(**{"period": 4, "alpha": 0.0, "beta": 0.5, "momentum": 0.9, **arguments})
