"""bias_correction, decoupled_decay and ratio_clip, in every backend, beside a naive transcription in float64."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from naive import NaiveOtherLamb, WithE
from support import assert_near, assert_same, clone_params, make_grads, pairwise, random_tensors, take_steps
from torch.nn import Parameter

from thalweg import ALTO, Lamb

SHAPES = [(5, 3), (3,), (2, 2, 40), (60_000, 6)]  # the last is more than a piece
BASIC = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "trust_eps": 1e-3, "weight_decay": 0.1}
WAYS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
ROWS = pairwise(itertools.product(WAYS, [True, False], [False, True], [None, (0.0, 0.9), (0.5, 1.2)], [0.0, 0.5]))


@pytest.mark.parametrize(("way", "corrected", "decoupled", "ratio_clip", "alpha"), ROWS, ids=str)
def test_a_step_is_that_of_the_equations(way, corrected, decoupled, ratio_clip, alpha):
    options = {"bias_correction": corrected, "decoupled_decay": decoupled, "ratio_clip": ratio_clip}
    starts = random_tensors(SHAPES, torch.float64, 0)
    starts[1].zero_()
    starts[2] *= 30.0
    params = [Parameter(p.clone()) for p in starts]
    grads = make_grads(params, 4)
    rule = functools.partial(NaiveOtherLamb, **BASIC, **options)
    naive = [WithE(rule, p, alpha, 0.5) for p in starts]
    optimizer = ALTO(params, alpha=alpha, beta=0.5, **BASIC, **options, **WAYS[way])
    for row in grads:
        take_steps(optimizer, params, [row])
        for one, g in zip(naive, row, strict=True):
            one.step(g)
    assert_near(params, [one.theta for one in naive], 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_step_does_not_decay(way):
    params = [Parameter(p) for p in random_tensors([(5, 3), (60_000, 6)], torch.float32, 0)]
    before = clone_params(params)
    optimizer = Lamb(params, lr=0.1, weight_decay=0.5, decoupled_decay=True, **WAYS[way])
    take_steps(optimizer, params, [[torch.full_like(p, float("nan")) for p in params]])
    assert_same(params, before)
    assert int(optimizer.skipped_steps) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_decay_of_0_is_none_wherever_it_is(way):
    params = [Parameter(p) for p in random_tensors(SHAPES, torch.float32, 0)]
    others = clone_params(params)
    grads = make_grads(params, 3)
    take_steps(Lamb(params, weight_decay=0.0, decoupled_decay=True, **WAYS[way]), params, grads)
    take_steps(Lamb(others, weight_decay=0.0, **WAYS[way]), others, grads)
    assert_same(params, others)


@pytest.mark.parametrize("way", WAYS)
def test_the_step_may_be_at_a_learning_rate_on_the_device_that_decides(way):
    """As under capturable, where both are tensors."""
    params = [Parameter(p) for p in random_tensors([(5, 3), (60_000, 6)], torch.float64, 0)]
    others = clone_params(params)
    grads = make_grads(params, 3)
    options = {"weight_decay": 0.3, "decoupled_decay": True, "ratio_clip": (0.1, 0.9), "bias_correction": False}
    lr = torch.tensor(0.05, dtype=torch.float64)
    captured = {} if way == "fused" else {"capturable": True}
    take_steps(Lamb(params, lr=lr, **options, **captured, **WAYS[way]), params, grads)
    take_steps(Lamb(others, lr=0.05, **options, foreach=False), others, grads)
    assert_near(params, others, 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_without_a_gradient_shrinks_by_decay_alone(way):
    """Within the ratio, decay moves it by lr of its norm, whatever the decay."""
    p = Parameter(torch.tensor([3.0, 4.0]))
    take_steps(Lamb([p], lr=0.1, weight_decay=0.01, decoupled_decay=True, **WAYS[way]), [p], [[torch.zeros(2)]])
    assert_near([p], [torch.tensor([3.0, 4.0]) * (1 - 0.1 * 0.01)], 1e-6)
    q = Parameter(torch.tensor([3.0, 4.0]))
    take_steps(Lamb([q], lr=0.1, weight_decay=0.01, trust_eps=0.0, **WAYS[way]), [q], [[torch.zeros(2)]])
    assert_near([q], [torch.tensor([3.0, 4.0]) * 0.9], 1e-6)


def test_a_float32_parameter_may_have_a_gradient_in_bfloat16():
    p = Parameter(torch.tensor([3.0, 4.0]))
    q = Parameter(torch.tensor([3.0, 4.0]))
    p.grad_dtype = torch.bfloat16
    p.grad, q.grad = torch.tensor([0.5, -2.0], dtype=torch.bfloat16), torch.tensor([0.5, -2.0])
    for one in (p, q):
        Lamb([one], lr=0.1).step()
    assert_same([p], [q])
