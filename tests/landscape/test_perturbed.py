"""Worst case and mean around a place against closed forms of quadratics; scales against rescaled networks."""

from __future__ import annotations

import pytest
import torch
from closed_forms import Quadratic, quadratic
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import (
    filter_scale,
    hessian_eigenpairs,
    hessian_trace,
    mean_increase,
    squared_gradient_norm,
    worst_case,
)

CONVEX = [9.0, 3.0, 2.0, *[0.5] * 9]


def trust_region_maximum(matrix, slope, radius):
    """max of slope·u + ½uᵀAu over ‖u‖ ≤ radius, by its secular equation: u = (μ - A)⁻¹ slope, μ > λ_max."""
    values, vectors = torch.linalg.eigh(matrix)
    along = vectors.T @ slope

    def excess(mu):
        return (along / (mu - values)).norm().item() - radius

    top = values[-1].item()
    mu = brentq(excess, top + 1e-9, top + 100.0 * (1 + slope.norm().item() / radius), xtol=1e-13)
    u = vectors @ (along / (mu - values))
    return (slope @ u + 0.5 * u @ matrix @ u).item()


def test_at_a_minimum_the_worst_case_is_the_top_eigenvalue():
    loss = Quadratic(CONVEX, [(3, 4)])
    found = worst_case(loss, loss.params, 0.3, steps=40)
    assert found.increase == pytest.approx(0.3**2 * 9.0 / 2, rel=1e-9)
    assert found.step.norm().item() == pytest.approx(0.3)
    assert abs(found.step @ loss.basis[:, 0]).item() == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("radius", [0.05, 1.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_on_a_slope_it_is_the_maximum_of_the_ball(radius, scaled):
    loss = Quadratic(CONVEX, [(3, 4)], linear=0.7)
    scale = torch.linspace(0.5, 1.5, 12, dtype=torch.float64) if scaled else torch.ones(12, dtype=torch.float64)
    exact = trust_region_maximum(scale[:, None] * loss.matrix * scale, scale * loss.linear, radius)
    found = worst_case(loss, loss.params, radius, steps=200, scale=scale if scaled else None)
    assert found.increase == pytest.approx(exact, rel=1e-6)


def test_one_step_is_sams():
    loss = Quadratic(CONVEX, [(3, 4)], linear=50.0)
    found = worst_case(loss, loss.params, 0.1, steps=1)
    sams = 0.1 * loss.linear / loss.linear.norm()
    exact = (loss.linear @ sams + 0.5 * sams @ loss.matrix @ sams).item()
    assert found.increase >= exact * (1 - 1e-12)  # it may be that from the random start
    assert found.increase == pytest.approx(exact, rel=1e-3)
    assert found.gradients == 2


def test_the_mean_increase_is_half_the_trace():
    loss = quadratic(linear=5.0).place(torch.ones(64, dtype=torch.float64))
    truth = 0.2**2 * loss.spectrum.sum().item() / 2
    found = [mean_increase(loss, loss.params, 0.2, pairs=16, seed=seed) for seed in range(100)]
    values = torch.tensor([one.value for one in found])
    assert abs(values.mean().item() - truth) < 4 * values.std().item() / 10
    errors = torch.tensor([one.standard_error**2 for one in found]).mean().sqrt()
    assert errors.item() == pytest.approx(values.std().item(), rel=0.15)
    # σ⁴ ‖A‖² / 2 is the variance of one pair, and the slope, 40 times as large, adds nothing to it
    assert errors.item() == pytest.approx(0.2**2 * (loss.spectrum.square().sum() / 2 / 16).sqrt().item(), rel=0.15)


def test_the_mean_increase_in_a_scale():
    loss = quadratic()
    scale = torch.linspace(0.1, 2, 64, dtype=torch.float64)
    found = mean_increase(loss, loss.params, 0.1, pairs=400, scale=scale)
    truth = 0.1**2 * (scale * loss.matrix.diagonal() * scale).sum().item() / 2
    assert abs(found.value - truth) < 4 * found.standard_error


def test_the_gradient():
    loss = quadratic(linear=2.0).place(torch.ones(64, dtype=torch.float64))
    slope = loss.matrix.sum(1) + loss.linear
    assert squared_gradient_norm(loss, loss.params) == pytest.approx(slope.square().sum().item())
    scale = torch.linspace(0, 1, 64, dtype=torch.float64)
    expected = (scale * slope).square().sum().item()
    assert squared_gradient_norm(loss, loss.params, scale=scale) == pytest.approx(expected)


def test_parameters_come_back_bit_for_bit():
    loss = quadratic(dtype=torch.float32).place(torch.randn(64))
    before = [p.detach().clone() for p in loss.params]
    worst_case(loss, loss.params, 0.1)
    mean_increase(loss, loss.params, 0.1)
    assert all(torch.equal(p, old) for p, old in zip(loss.params, before, strict=True))


def test_filters():
    kernel = nn.Parameter(torch.arange(24.0).view(2, 3, 2, 2))
    bias = nn.Parameter(torch.tensor([3.0, -4.0]))
    number = nn.Parameter(torch.tensor(-2.0))
    found = filter_scale([kernel, bias, number])
    expected = [*[kernel[0].square().mean().sqrt().item()] * 12, *[kernel[1].square().mean().sqrt().item()] * 12]
    torch.testing.assert_close(found, torch.tensor([*expected, *[12.5**0.5] * 2, 2.0]))


def test_filter_normalised_flatness_does_not_see_a_rescaled_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3)).double()
    x, y = torch.randn(30, 4).double(), torch.randint(3, (30,))
    params = list(model.parameters())

    def loss():
        return F.cross_entropy(model(x), y)

    def measured(scale):
        return torch.tensor([
            hessian_eigenpairs(loss, params, scale=scale).values.item(),
            hessian_trace(loss, params, 9 * 84, scale=scale).value,
            worst_case(loss, params, 0.05, scale=scale, steps=3).increase,
            mean_increase(loss, params, 0.05, scale=scale).value,
            squared_gradient_norm(loss, params, scale=scale),
        ])  # fmt: skip

    plain, normalised = measured(None), measured(filter_scale(params))
    with torch.no_grad():
        model[0].weight.mul_(8.0)
        model[0].bias.mul_(8.0)
        model[2].weight.div_(8.0)
    torch.testing.assert_close(measured(filter_scale(params)), normalised, rtol=1e-5, atol=1e-9)
    assert ((measured(None) / plain - 1).abs() > 0.3).all()


P = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("says", "call"),
    [
        (r"radius must be a number in \(0, inf\), got 0", lambda f: worst_case(f, [P], 0)),
        (r"steps must be an integer of at least 1, got 0", lambda f: worst_case(f, [P], 0.1, steps=0)),
        (r"scale must be a vector of 3 finite numbers", lambda f: worst_case(f, [P], 0.1, scale=torch.ones(1))),
        (r"sigma must be a number in \(0, inf\), got -1", lambda f: mean_increase(f, [P], -1)),
        (r"pairs must be an integer of at least 2, got 1", lambda f: mean_increase(f, [P], 0.1, pairs=1)),
        (r"params must be at least one tensor", lambda f: squared_gradient_norm(f, [])),
    ],
)
def test_bad_input(says, call):
    with pytest.raises(ValueError, match=says):
        call(lambda: P.square().sum())
