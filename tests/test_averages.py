"""Moving averages in float32 follow a gradient that drops by many powers of ten, at every β."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from naive import NaiveAdamW, NaiveLamb, NaiveSGD, WithE
from support import E_WAYS, WAYS, assert_near, pairwise
from torch.nn import Parameter

from thalweg import ALTO, ESGD, EAdamW, Lamb

BETAS = [0.0, 0.01, 0.1, 0.5, 0.9, 0.999]
ALL_WAYS = [*WAYS, "triton"]
DROPS = torch.tensor([[1e-4], [1e-6], [1e-8]])
LARGE = torch.tensor([1.0, -0.5, 2.0, 0.25, 1.5])
LR, EPS = 1.0, 1e-12
OPTIONS = {"lr": LR, "eps": EPS, "weight_decay": 0.0}
TOLERANCE = 1e-5  # at β = 0.01 torch.lerp has 1 - 0.99 in float32, 3e-6 off


def gradients():
    """A large one, and then small ones, of two signs; a row for each drop."""
    return [LARGE.expand(3, 5), *(LARGE.roll(k) * DROPS * k for k in (1, 2, 3))]


def assert_moves_are_those_of(oracle, make):
    """Each step is compared by itself: after a large first one, the others would be lost in the parameter."""
    p = Parameter(torch.ones(3, 5))
    optimizer = make([p])
    oracle = oracle(torch.ones(3, 5).double())
    for g in gradients():
        with torch.no_grad():
            p.zero_()
        before = oracle.theta
        p.grad = g.clone()
        optimizer.step()
        oracle.step(g.double())
        assert_near(p, oracle.theta - before, TOLERANCE)


def adamw(*betas):
    return functools.partial(NaiveAdamW, lr=LR, betas=betas, eps=EPS)


def with_e(rule, alpha, beta):
    return lambda theta: WithE(rule, theta, alpha, beta)


@pytest.mark.parametrize(
    ("which", "beta", "way"), pairwise(itertools.product([0, 1], BETAS, ALL_WAYS)), indirect=["way"]
)
def test_the_moments(which, beta, way):
    betas = (beta, 0.5) if which == 0 else (0.5, beta)
    assert_moves_are_those_of(adamw(*betas), functools.partial(Lamb, betas=betas, trust_ratio=False, **OPTIONS, **way))


@pytest.mark.parametrize(
    ("gain", "beta", "way"),
    pairwise(itertools.product([-0.99, -0.5, -3e-4, 0.5], BETAS, ALL_WAYS)),
    indirect=["way"],
)
def test_the_average_of_e(gain, beta, way):
    alpha = gain / (1.0 - beta)
    make = functools.partial(ALTO, betas=(0.0, 0.5), alpha=alpha, beta=beta, trust_ratio=False, **OPTIONS, **way)
    assert_moves_are_those_of(with_e(adamw(0.0, 0.5), alpha, beta), make)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("foreach", [False, True])
def test_in_a_step_that_is_judged_on_the_device(foreach, beta):
    options = {**OPTIONS, "trust_ratio": False, "capturable": True, "foreach": foreach}
    make = functools.partial(ALTO, betas=(beta, beta), alpha=0.4, beta=beta, **options)
    assert_moves_are_those_of(with_e(adamw(beta, beta), 0.4, beta), make)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("how", E_WAYS)
def test_e_around_adamw(how, beta):
    make = functools.partial(EAdamW, betas=(0.5, beta), alpha=0.4, beta=beta, **OPTIONS, **E_WAYS[how])
    assert_moves_are_those_of(with_e(adamw(0.5, beta), 0.4, beta), make)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("how", E_WAYS)
def test_e_around_sgd(how, beta):
    make = functools.partial(ESGD, lr=LR, alpha=0.4, beta=beta, **E_WAYS[how])
    assert_moves_are_those_of(with_e(functools.partial(NaiveSGD, lr=LR), 0.4, beta), make)


def test_the_papers_small_batches(way):
    """α = .5, β1 = .01, with the trust ratio."""
    options = {"lr": 0.1, "eps": EPS, "trust_eps": 1e-6, "weight_decay": 0.0}
    start = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    oracle = WithE(lambda t: NaiveLamb(t, betas=(0.9, 0.0), **options), start.double(), 0.5, 0.01)
    p = Parameter(start.clone())
    optimizer = ALTO([p], betas=(0.9, 0.0), alpha=0.5, beta=0.01, **options, **way)
    for row in gradients():
        p.grad = row[0].clone()
        optimizer.step()
        oracle.step(row[0].double())
        assert_near([p], [oracle.theta], TOLERANCE)
