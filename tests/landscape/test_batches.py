"""Batch sharpness and gradient noise, by hand and against what their distributions are known to be."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import dense_hessian, functional_loss, small_network
from torch import nn
from torch.nn import functional as F

from thalweg.landscape import FixedSample, batch_sharpness, batch_sharpness_limits, gradient_noise
from thalweg.landscape.batches import noise_of
from thalweg.theory import stability_limit


def test_batch_sharpness_by_hand():
    model, x, y = small_network()
    params = list(model.parameters())
    batches = [(x[a : a + 8], y[a : a + 8]) for a in range(0, 40, 8)]
    found = batch_sharpness(FixedSample(model, F.cross_entropy, batches), params)
    ratios, tops, bottoms = [], [], []
    for bx, by in batches:
        grads = torch.autograd.grad(F.cross_entropy(model(bx), by), params)
        g = torch.cat([one.reshape(-1) for one in grads])
        hessian = dense_hessian(functional_loss(model, bx, by), params)
        tops.append((g @ hessian @ g).item())
        bottoms.append((g @ g).item())
        ratios.append(tops[-1] / bottoms[-1])
    assert found.mean.value == pytest.approx(sum(ratios) / 5)
    assert found.mean.standard_error == pytest.approx(torch.tensor(ratios).std().item() / math.sqrt(5))
    assert found.pooled == pytest.approx(sum(tops) / sum(bottoms))


def test_the_limits():
    small, large = batch_sharpness_limits(0.05, 0.9)
    assert (small, large) == (pytest.approx(2 * 0.1 / 0.05), pytest.approx(2 * 1.9 / 0.05))
    eta = 0.05 / (1 - 0.9)  # of the same momentum as an average
    assert large == pytest.approx(stability_limit(0.0, 0.0, momentum=0.9) / eta)
    assert batch_sharpness_limits(eta, 0.9, summed=False) == pytest.approx((small, large))
    assert batch_sharpness_limits(0.1) == pytest.approx((20.0, 20.0))


def noisy_sample(sizes, entries=20, variance=4.0, seed=0):
    """Gradients of examples that are normal, of mean 1 and a known variance in each entry."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(entries, 1, bias=False, dtype=torch.float64)
    drawn = [1.0 + variance**0.5 * torch.randn(n, entries, generator=generator, dtype=torch.float64) for n in sizes]
    return FixedSample(model, lambda out, _: out.mean(), [(x, x) for x in drawn]), model


@pytest.mark.parametrize("sizes", [[4] * 10, [1, 7, 2, 8, 4, 18]])
def test_gradient_noise_is_unbiased(sizes):
    found = []
    for seed in range(400):
        sample, model = noisy_sample(sizes, seed=seed)
        found.append(gradient_noise(sample, model.parameters()))
    traces = torch.tensor([one.trace for one in found])
    squares = torch.tensor([one.squared_norm for one in found])
    assert abs(traces.mean() - 80.0) < 4 * traces.std() / 20
    assert abs(squares.mean() - 20.0) < 4 * squares.std() / 20
    assert traces.std() < 20
    assert found[0].scale == pytest.approx(found[0].trace / found[0].squared_norm)


def test_the_noise_of_examples_is_their_covariance():
    sample, model = noisy_sample([1] * 50)
    found = gradient_noise(sample, model.parameters())
    x = torch.cat([x for x, _ in sample.batches])
    assert found.trace == pytest.approx(torch.cov(x.T).trace().item())
    assert found.squared_norm == pytest.approx((x.mean(0).square().sum() - torch.cov(x.T).trace() / 50).item())


def test_only_noise():
    assert noise_of([1, 1], [1.0, 1.0], 0.0).scale == math.inf


P = nn.Parameter(torch.ones(3))
LINEAR = nn.Linear(1, 1)
X = torch.ones(2, 1)


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("sample must be a FixedSample, as each", lambda: batch_sharpness(lambda: P.sum(), [P])),
        (r"sample must be one with batches of one size, but for the last, got 'batches of \[1, 2\]'",
         lambda: batch_sharpness(FixedSample(LINEAR, F.mse_loss, [(X[:1], X[:1]), (X, X)]), LINEAR.parameters())),
        ("sample must be one with at least 2 of them, got 'one with 1 batches that have a gradient'",
         lambda: batch_sharpness(FixedSample(LINEAR, F.mse_loss, [(X, X)]), LINEAR.parameters())),
        ("lr must be a number in", lambda: batch_sharpness_limits(0.0)),
        ("momentum must be a number in", lambda: batch_sharpness_limits(0.1, 1.0)),
        ("sample must be a FixedSample of at least 2 batches", lambda: gradient_noise(lambda: P.sum(), [P])),
        ("sizes must be those of at least 2 parts", lambda: noise_of([1], [1.0], 1.0)),
    ],
)  # fmt: skip
def test_bad_input(says, call):
    with pytest.raises(ValueError, match=says):
        call()
