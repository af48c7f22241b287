"""Trace, spectral density and blocks against chosen spectra and a dense Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import DeepLinear, dense_hessian, functional_loss, quadratic, small_network
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import curvature_by_layer, hessian_trace, spectral_density
from thalweg.landscape.lanczos import orthogonalise
from thalweg.landscape.layers import by_module


def test_the_trace_is_unbiased_and_its_standard_error_honest():
    loss = quadratic(linear=0.3)
    found = [hessian_trace(loss, loss.params, 24, seed=seed) for seed in range(600)]
    values = torch.tensor([one.value for one in found])
    mean_square_error = torch.tensor([one.standard_error**2 for one in found]).mean()
    truth = loss.spectrum.sum().item()
    scatter = values.std().item()
    assert abs(values.mean().item() - truth) < 4 * scatter / math.sqrt(600)
    assert mean_square_error.sqrt().item() == pytest.approx(scatter, rel=0.12)
    inside = torch.tensor([abs(one.value - truth) < 2.5 * one.standard_error for one in found])
    assert inside.float().mean() > 0.9


def test_it_beats_hutchinson_where_few_eigenvalues_are_large():
    from closed_forms import Quadratic

    loss = Quadratic([100.0, 80.0, 60.0, 40.0] + [0.1] * 60, [(8, 8)])
    errors = [abs(hessian_trace(loss, loss.params, 30, seed=seed).value - 286.0) for seed in range(20)]
    # 2 (‖A‖² - Σ A_ii²) is the variance of zᵀAz
    hutchinson = 2 * (loss.matrix.square().sum() - loss.matrix.diagonal().square().sum()) / 30
    assert max(errors) < 0.01 * hutchinson.sqrt().item()


def test_enough_products_are_exact():
    model = DeepLinear([2.0, 1.0])
    found = hessian_trace(model.loss, model.parameters(), 24)
    assert found.value == pytest.approx(model.spectrum.sum().item(), rel=1e-12)
    assert found.standard_error == 0.0


def test_trace_of_a_network_and_a_scale():
    model, x, y = small_network()
    params = list(model.parameters())
    hessian = dense_hessian(functional_loss(model, x, y), params)
    scale = torch.rand(len(hessian), dtype=torch.float64)
    for s in (torch.ones_like(scale), scale):
        exact = (s * hessian.diagonal() * s).sum().item()
        found = hessian_trace(lambda: F.cross_entropy(model(x), y), params, 60, scale=s)
        assert abs(found.value - exact) < 4 * found.standard_error
        assert found.standard_error < 0.15 * exact


def test_lanczos_is_a_gauss_quadrature():
    """Of each vector z, the moments zᵀH^k z are exact up to degree 2·steps - 1, and not beyond."""
    from thalweg.landscape.estimates import random_vectors

    loss = quadratic()
    found = spectral_density(loss, loss.params, steps=4, vectors=3, seed=5)
    for at, z in enumerate(random_vectors(torch.zeros(64, dtype=torch.float64), 3, 5, signs=True)):
        z = z / z.norm()
        for power in range(10):
            exact = (z @ torch.linalg.matrix_power(loss.matrix, power) @ z).item()
            ours = (found.weights[at] * found.nodes[at] ** power).sum().item()
            assert (abs(ours - exact) < 1e-9 * 9.0**power) == (power < 8), power


def test_moments_shares_and_density():
    loss = quadratic()
    found = spectral_density(loss, loss.params, steps=64, vectors=60)
    for power in (0, 1, 2, 3):
        exact = (loss.spectrum**power).mean().item()
        moment = found.moment(power)
        assert abs(moment.value - exact) < 3.5 * moment.standard_error + 1e-9, power
    share = found.below(0.0)
    assert abs(share.value - (loss.spectrum < 0).double().mean().item()) < 3.5 * share.standard_error
    assert share.standard_error < 0.03
    grid = torch.linspace(-6.0, 13.0, 4001, dtype=torch.float64)
    exact = torch.exp((grid[:, None] - loss.spectrum).square() / -2 / 0.5**2).mean(1) / (0.5 * math.sqrt(2 * math.pi))
    ours = found.density(grid, 0.5)
    assert torch.trapezoid(ours, grid).item() == pytest.approx(1.0, abs=1e-6)
    assert (ours - exact).abs().max() < 0.05 * exact.max()
    assert found.nodes.max().item() == pytest.approx(9.0, rel=1e-8)


def test_few_distinct_eigenvalues_end_lanczos_early():
    from closed_forms import Quadratic

    loss = Quadratic([5.0] * 3 + [-1.0] * 61, [(64,)])
    found = spectral_density(loss, loss.params, steps=30, vectors=4)
    weighty = found.weights > 1e-9
    assert weighty.sum(1).tolist() == [2] * 4
    assert sorted(set(found.nodes[weighty].mul(1e6).round().div(1e6).tolist())) == [-1.0, 5.0]


def test_no_eigenvalue_is_counted_twice():
    """After as many steps as there are eigenvalues each is a node once, which takes vectors that stay orthogonal."""
    from closed_forms import Quadratic

    spectrum = [*torch.linspace(0.0, 1.0, 60).tolist(), 200.0, 400.0, 800.0, 1600.0]
    loss = Quadratic(spectrum, [(64,)])
    found = spectral_density(loss, loss.params, steps=64, vectors=2)
    for nodes in found.nodes:
        torch.testing.assert_close(nodes.sort().values, loss.spectrum, rtol=0, atol=1e-6)


def test_what_is_nearly_in_the_span_is_made_orthogonal_too():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(1000, 20, generator=generator))[0].T.contiguous()
    along = torch.randn(20, generator=generator)
    w = along @ basis + 1e-5 * torch.randn(1000, generator=generator)
    found = orthogonalise(w, basis)
    assert (basis @ w).norm() < 1e-5 * w.norm()
    torch.testing.assert_close(found, along.double(), rtol=1e-3, atol=1e-4)


def test_blocks_are_those_of_the_dense_hessian():
    model, x, y = small_network()
    hessian = dense_hessian(functional_loss(model, x, y), list(model.parameters()))
    found = curvature_by_layer(lambda: F.cross_entropy(model(x), y), model, products=120)
    assert list(found) == ["0", "2"]
    for (name, one), (a, b) in zip(found.items(), ((0, 42), (42, 66)), strict=True):
        block = hessian[a:b, a:b]
        assert one.entries == b - a
        assert one.top == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-7)
        assert abs(one.trace.value - block.trace().item()) < 4 * one.trace.standard_error + 1e-9, name
    weight = curvature_by_layer(lambda: F.cross_entropy(model(x), y), {"w": [model[0].weight]})["w"]
    assert weight.top == pytest.approx(torch.linalg.eigvalsh(hessian[:35, :35])[-1].item(), rel=1e-7)


def test_modules_of_a_model():
    tied = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": tied, "norm": nn.LayerNorm(2), "again": tied, "frozen": nn.Linear(1, 1)})
    model["frozen"].requires_grad_(False)
    assert {name: len(params) for name, params in by_module(model).items()} == {"a": 2, "norm": 2}


P = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("products must be an integer of at least 6, got 5", lambda f: hessian_trace(f, [P], 5)),
        ("steps must be an integer of at least 1, got 0", lambda f: spectral_density(f, [P], steps=0)),
        ("vectors must be an integer of at least 2, got 1", lambda f: spectral_density(f, [P], vectors=1)),
        ("width must be a number in", lambda f: spectral_density(f, [P], vectors=2).density(torch.zeros(1), 0.0)),
        ("blocks must be a model with parameters", lambda f: curvature_by_layer(f, nn.ReLU())),
        ("products must be an integer of at least 6", lambda f: curvature_by_layer(f, {"p": [P]}, products=2)),
    ],
)
def test_bad_input(says, call):
    with pytest.raises(ValueError, match=says):
        call(lambda: P.square().sum())
