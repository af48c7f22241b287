"""Moving averages in float32 follow a gradient that drops by many powers of ten, at every β."""

from __future__ import annotations

import functools

import pytest
import torch
from naive import NaiveAdamW, NaiveLamb, NaiveSGD, WithE
from support import E_WAYS, assert_near
from torch.nn import Parameter

from thalweg import ALTO, ESGD, EAdamW, Lamb

BETAS = (0.0, 0.01, 0.1, 0.5, 0.9, 0.999)
DROPS = (1e-4, 1e-6, 1e-8)
LR, EPS, STEPS = 1.0, 1e-12, 4
TOLERANCE = 1e-5  # at β = 0.01 torch.lerp has 1 - 0.99 in float32, 3e-6 off


def gradients(drop: float) -> list[torch.Tensor]:
    """Large ones, and then small ones, of two signs."""
    large = torch.tensor([1.0, -0.5, 2.0, 0.25, 1.5])
    return [large, *(large.roll(k) * drop * k for k in range(1, STEPS))]


def assert_moves_are_those_of(oracle, make, drop):
    """Each step is compared by itself: after a large first one, the others are lost in the parameter."""
    p = Parameter(torch.ones(5))
    optimizer = make([p])
    for g in gradients(drop):
        with torch.no_grad():
            p.zero_()  # in steps around zero, no digit is lost
        before = oracle.theta
        p.grad = g.clone()
        optimizer.step()
        oracle.step(g.double())
        assert_near([p], [oracle.theta - before], TOLERANCE)


OPTIONS = {"lr": LR, "eps": EPS, "weight_decay": 0.0, "trust_ratio": False}


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("which", [0, 1])
def test_the_moments(which, beta, drop, way):
    betas = (beta, 0.5) if which == 0 else (0.5, beta)
    oracle = NaiveAdamW(torch.ones(5).double(), lr=LR, betas=betas, eps=EPS)
    assert_moves_are_those_of(oracle, functools.partial(Lamb, betas=betas, **OPTIONS, **way), drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("gain", [-0.99, -0.5, -3e-4, 0.5])
def test_the_average_of_e(gain, beta, drop, way):
    alpha = gain / (1.0 - beta)
    oracle = WithE(lambda t: NaiveAdamW(t, lr=LR, betas=(0.0, 0.5), eps=EPS), torch.ones(5).double(), alpha, beta)
    make = functools.partial(ALTO, betas=(0.0, 0.5), alpha=alpha, beta=beta, **OPTIONS, **way)
    assert_moves_are_those_of(oracle, make, drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("foreach", [False, True])
def test_in_a_step_that_is_judged_on_the_device(foreach, beta, drop):
    options = {**OPTIONS, "capturable": True, "foreach": foreach}
    oracle = WithE(lambda t: NaiveAdamW(t, lr=LR, betas=(beta, beta), eps=EPS), torch.ones(5).double(), 0.4, beta)
    make = functools.partial(ALTO, betas=(beta, beta), alpha=0.4, beta=beta, **options)
    assert_moves_are_those_of(oracle, make, drop)


@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("how", E_WAYS)
def test_e_around_adamw(how, beta, drop):
    oracle = WithE(lambda t: NaiveAdamW(t, lr=LR, betas=(0.5, beta), eps=EPS), torch.ones(5).double(), 0.4, beta)
    options = {"lr": LR, "eps": EPS, "weight_decay": 0.0, **E_WAYS[how]}
    assert_moves_are_those_of(oracle, functools.partial(EAdamW, betas=(0.5, beta), alpha=0.4, beta=beta, **options), drop)


@pytest.mark.parametrize("overwrite_grad", [False, True])
@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("how", E_WAYS)
def test_e_around_sgd(how, beta, drop, overwrite_grad):
    oracle = WithE(lambda t: NaiveSGD(t, lr=LR), torch.ones(5).double(), 0.4, beta)
    make = functools.partial(ESGD, lr=LR, alpha=0.4, beta=beta, overwrite_grad=overwrite_grad, **E_WAYS[how])
    assert_moves_are_those_of(oracle, make, drop)


def test_the_papers_small_batches(way):
    """α = .5, β1 = .01, with the trust ratio."""
    options = {"lr": 0.1, "eps": EPS, "trust_eps": 1e-6, "weight_decay": 0.0}
    start = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    oracle = WithE(lambda t: NaiveLamb(t, betas=(0.9, 0.0), **options), start.double(), 0.5, 0.01)
    p = Parameter(start.clone())
    optimizer = ALTO([p], betas=(0.9, 0.0), alpha=0.5, beta=0.01, **options, **way)
    for g in gradients(1e-4):
        p.grad = g
        optimizer.step()
        oracle.step(g.double())
        assert_near([p], [oracle.theta], TOLERANCE)
