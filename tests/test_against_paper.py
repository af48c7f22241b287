"""The optimizers follow the paper's slides, transcribed in naive.py, in float64."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from naive import NaiveAdam, NaiveAdamW, NaiveE, NaiveLamb, NaiveSGD, WithE
from support import LARGE, SHAPES, WAYS, assert_near, make_grads, make_params, pairwise, take_steps

from thalweg import ALTO, ESGD, EAdam, EAdamW, Lamb
from thalweg import equations as eq

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

ALPHAS = (-5.0, 0.0, 0.5, 3.0)
BETAS = (0.01, 0.5, 0.99)
PAIRS = tuple((alpha, beta) for alpha in ALPHAS for beta in BETAS)
ALLOWED = tuple((alpha, beta) for alpha, beta in PAIRS if abs(alpha) * (1 - beta) < 1)
REFUSED = tuple(pair for pair in PAIRS if pair not in ALLOWED)
STEPS = 100
TOLERANCE = 1e-12

SGD: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1}
MOMENTUM: dict[str, Any] = {**SGD, "momentum": 0.9, "dampening": 0.3}
NESTEROV: dict[str, Any] = {**SGD, "momentum": 0.9, "nesterov": True}
ADAM: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
LAMB: dict[str, Any] = {**ADAM, "trust_eps": 0.01}

RULES = {
    "SGD": (functools.partial(NaiveSGD, **SGD), functools.partial(ESGD, **SGD)),
    "momentum": (functools.partial(NaiveSGD, **MOMENTUM), functools.partial(ESGD, **MOMENTUM)),
    "Nesterov": (functools.partial(NaiveSGD, **NESTEROV), functools.partial(ESGD, **NESTEROV)),
    "Adam": (functools.partial(NaiveAdam, **ADAM), functools.partial(EAdam, **ADAM)),
    "AdamW": (functools.partial(NaiveAdamW, **ADAM), functools.partial(EAdamW, **ADAM)),
    "ALTO": (functools.partial(NaiveLamb, **LAMB), None),
}


def build(rule: str, params: Any, alpha: float, beta: float, **options: Any) -> Optimizer:
    if rule == "ALTO":
        return ALTO(params, alpha=alpha, beta=beta, **LAMB, **options)
    return RULES[rule][1](params, alpha=alpha, beta=beta, **options)


@functools.cache
def gradients(shapes: Any = SHAPES, steps: int = STEPS) -> list[list[Tensor]]:
    return make_grads(make_params(shapes), steps)


@functools.cache
def naive_result(rule: str, alpha: float, beta: float, shapes: Any = SHAPES, steps: int = STEPS) -> list[Tensor]:
    result = []
    for i, theta in enumerate(make_params(shapes)):
        oracle = WithE(RULES[rule][0], theta, alpha, beta)
        for row in gradients(shapes, steps):
            oracle.step(row[i])
        result.append(oracle.theta)
    return result


@pytest.mark.parametrize(
    ("rule", "how", "pair"),
    pairwise(
        (rule, how, pair)
        for rule, how, pair in itertools.product(RULES, WAYS, ALLOWED)
        if how != "fused" or rule in ("ALTO", "AdamW")  # kernels of ours
    ),
)
def test_e_in_front_of_a_rule_follows_the_two_buffer_recursion(rule, how, pair):
    alpha, beta = pair
    params = make_params(SHAPES)
    take_steps(build(rule, params, alpha, beta, **WAYS[how]), params, gradients())
    assert_near(params, naive_result(rule, alpha, beta), TOLERANCE)


@pytest.mark.parametrize("how", WAYS)
def test_lamb_follows_the_slides_without_e(how):
    params = make_params(SHAPES)
    take_steps(Lamb(params, **WAYS[how], **LAMB), params, gradients())
    assert_near(params, naive_result("ALTO", 0.0, 0.5), TOLERANCE)


@pytest.mark.parametrize(("rule", "how", "pair"), pairwise(itertools.product(RULES, WAYS, [(-5.0, 0.99), (0.5, 0.01)])))
def test_layers_that_are_cut_and_shared_out_follow_it_too(rule, how, pair):
    alpha, beta = pair
    params = make_params(LARGE)
    take_steps(build(rule, params, alpha, beta, **WAYS[how]), params, gradients(LARGE, 3))
    assert_near(params, naive_result(rule, alpha, beta, LARGE, 3), TOLERANCE)


@pytest.mark.parametrize(("alpha", "beta"), [(-5.0, 0.99), (0.5, 0.01)])
@pytest.mark.parametrize("rule", ["ALTO", "AdamW"])
def test_tritons_kernels_follow_it(rule, alpha, beta, triton_steps):
    params = make_params(SHAPES)
    take_steps(build(rule, params, alpha, beta, **triton_steps), params, gradients()[:6])
    assert_near(params, naive_result(rule, alpha, beta, SHAPES, 6), TOLERANCE)


@pytest.mark.parametrize(("alpha", "beta"), REFUSED)
@pytest.mark.parametrize("rule", RULES)
def test_alpha_outside_the_papers_range_is_refused(rule, alpha, beta):
    with pytest.raises(ValueError, match=r"^alpha must be a number in \(.*\), as \|alpha\| < 1/\(1 - beta"):
        build(rule, make_params(SHAPES), alpha, beta)


@pytest.mark.parametrize(("alpha", "beta"), PAIRS)
def test_one_buffer_gives_what_two_give_for_every_alpha_and_beta(alpha, beta):
    two_buffers, b = NaiveE(alpha, beta), torch.zeros(3, 4, dtype=torch.float64)
    for row in gradients():
        h, b = eq.explore(row[0], b, alpha=alpha, beta=beta)
        assert_near([h], [two_buffers(row[0])], TOLERANCE)


def test_the_refused_pairs_are_those_whose_gain_reaches_one():
    assert REFUSED == ((-5.0, 0.01), (-5.0, 0.5), (3.0, 0.01), (3.0, 0.5))
