"""E around SAM, and SAM around E: each against a step written out by hand in float64."""

from __future__ import annotations

import pytest
import pytorch_optimizer as po
import torch
from naive import NaiveE
from support import assert_near, clone_params, make_params
from torch.optim import SGD

from thalweg import E

SHAPES = ((3, 4), (4,))
ALPHA, BETA, LR, RHO, STEPS = 0.5, 0.75, 0.05, 0.1, 5
ROUNDING = 1e-6  # the package takes the norm of the gradient in float32


def gradient(point):
    point = clone_params(point)
    weight, bias = point
    torch.nn.functional.softplus(weight.sin() @ bias.exp()).square().sum().backward()
    return [p.grad for p in point]


def closure_of(params):
    def closure():
        for p, g in zip(params, gradient(params), strict=True):
            p.grad = g
        return torch.zeros((), dtype=torch.float64)

    return closure


def ascent(point, g):
    norm = sum(x.square().sum() for x in g).sqrt()
    return [p.detach() + RHO * x / norm for p, x in zip(point, g, strict=True)]


@pytest.mark.parametrize("foreach", [False, True])
def test_e_around_sam_shifts_both_gradients_of_a_step_by_what_the_first_says(foreach):
    params, expected = make_params(SHAPES), make_params(SHAPES)
    base = po.SAM(params, SGD, rho=RHO, lr=LR, foreach=foreach)
    optimizer = E(base, ALPHA, BETA, reevaluates=True)
    rules = [NaiveE(ALPHA, BETA) for _ in expected]
    evaluations = []
    for _ in range(STEPS):
        closure = closure_of(params)
        optimizer.step(lambda closure=closure: evaluations.append(1) or closure())
        g = gradient(expected)
        shift = [rule(x) - x for rule, x in zip(rules, g, strict=True)]
        up = ascent(expected, [x + s for x, s in zip(g, shift, strict=True)])
        for p, x, s in zip(expected, gradient(up), shift, strict=True):
            p.data.sub_(LR * (x + s))
        assert_near(params, expected, ROUNDING)
    assert len(evaluations) == 2 * STEPS


def test_sam_around_e_adapts_the_gradient_found_at_the_perturbed_point():
    params, expected = make_params(SHAPES), make_params(SHAPES)
    optimizer = po.SAM(params, E.of(SGD), rho=RHO, lr=LR, alpha=ALPHA, beta=BETA)
    rules = [NaiveE(ALPHA, BETA) for _ in expected]
    for _ in range(STEPS):
        closure = closure_of(params)
        closure()
        optimizer.step(closure)
        for p, x, rule in zip(expected, gradient(ascent(expected, gradient(expected))), rules, strict=True):
            p.data.sub_(LR * rule(x))
        assert_near(params, expected, ROUNDING)


def test_the_two_differ_and_both_differ_from_sam_alone():
    results = []
    for build in (
        lambda ps: E(po.SAM(ps, SGD, rho=RHO, lr=LR), ALPHA, BETA, reevaluates=True),
        lambda ps: po.SAM(ps, E.of(SGD), rho=RHO, lr=LR, alpha=ALPHA, beta=BETA),
        lambda ps: po.SAM(ps, SGD, rho=RHO, lr=LR),
    ):
        params = make_params(SHAPES)
        optimizer, closure = build(params), closure_of(params)
        for _ in range(STEPS):
            closure()
            optimizer.step(closure)
        results.append(params[0].detach())
    for i in range(3):
        assert (results[i] - results[i - 1]).abs().max() > 1e-4
