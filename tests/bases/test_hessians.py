"""Bases that differentiate the gradient: E adds a constant to it, so the Hessian they see is that of the loss."""

from __future__ import annotations

import pytest
import pytorch_optimizer as po
import torch
from naive import NaiveE
from support import assert_near, assert_same, clone_params, make_params

from thalweg import E

SHAPES = ((3, 4), (4,))
BASES = pytest.mark.parametrize(
    "build",
    [
        lambda ps: po.AdaHessian(ps, lr=0.01, hessian_distribution="rademacher", num_samples=2),
        lambda ps: po.AdaHessian(ps, lr=0.01, hessian_distribution="gaussian"),
        lambda ps: po.SophiaH(ps, lr=0.01, update_period=1),
    ],
    ids=["AdaHessian-rademacher", "AdaHessian-gaussian", "SophiaH"],
)


def loss(params):
    """Its Hessian couples the parameters and depends on where they are."""
    weight, bias = params
    return torch.nn.functional.softplus(weight.sin() @ bias.exp()).square().sum()


def backward(params):
    for p in params:
        p.grad = None
    loss(params).backward(create_graph=True)


@BASES
def test_the_estimate_of_the_hessian_is_that_of_the_base_alone_at_the_same_point_and_seed(build):
    params = make_params(SHAPES)
    optimizer = E(build(params), 0.5, 0.75)
    for k in range(4):
        here = clone_params(params)
        backward(params)
        torch.manual_seed(k)
        optimizer.step()
        alone = build(here)
        backward(here)
        torch.manual_seed(k)
        alone.step()
        for p, q in zip(params, here, strict=True):
            found, expected = (o.state[x]["hessian"] for o, x in ((optimizer, p), (alone, q)))
            assert expected.abs().min() > 0
            assert_near([found], [expected], 1e-14)


@BASES
def test_it_is_the_base_alone_fed_with_the_papers_gradient_and_the_hessian_of_the_loss(build):
    params, expected = make_params(SHAPES), make_params(SHAPES)
    optimizer, alone = E(build(params), 0.5, 0.75), build(expected)
    rules = [NaiveE(0.5, 0.75) for _ in expected]
    for k in range(6):
        backward(params)
        torch.manual_seed(k)
        optimizer.step()
        backward(expected)
        torch.manual_seed(k)
        z = [
            torch.randn_like(p)
            if isinstance(alone, po.SophiaH) or alone.distribution == "gaussian"
            else torch.randint_like(p, 0, 2) * 2.0 - 1.0
            for _ in range(alone.num_samples)
            for p in expected
        ]
        n = len(expected)
        samples = [z[i : i + n] for i in range(0, len(z), n)]
        products = [torch.autograd.grad([p.grad for p in expected], expected, s, retain_graph=True) for s in samples]
        hessian = [sum(s[i] * hz[i] for s, hz in zip(samples, products, strict=True)) / len(samples) for i in range(n)]
        for p, rule in zip(expected, rules, strict=True):
            p.grad = rule(p.grad.detach())
        alone.step(hessian=hessian)
    assert_near(params, expected, 1e-12)
    with pytest.raises(AssertionError):
        assert_same(params, make_params(SHAPES))


@BASES
def test_the_gradient_afterwards_is_the_callers_with_its_graph(build):
    params = make_params(SHAPES)
    optimizer = E(build(params), 0.5, 0.75)
    for k in range(2):
        backward(params)
        grads = [p.grad for p in params]
        values = [g.detach().clone() for g in grads]
        torch.manual_seed(k)
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, grads, strict=True))
        assert_same([g.detach() for g in grads], values)
        assert all(g.requires_grad for g in grads)
