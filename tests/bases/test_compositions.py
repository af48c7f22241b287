"""E with what stands around optimizers: Lookahead, Schedule-Free, accumulation, clipping, averages of weights."""

from __future__ import annotations

import pytest
import pytorch_optimizer as po
import torch
from naive import NaiveE, NaiveSGD, WithE
from support import assert_near, assert_same, make_grads, make_params, take_steps
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from thalweg import ESGD, E

SHAPES = ((3, 4), (4,))
ALPHA, BETA, LR, STEPS = 0.5, 0.75, 0.05, 7


def by_hand(params, grads, k=None):
    """SGD on g', with Lookahead every ``k`` steps: half way back to the slow weights."""
    rules = [WithE(lambda theta: NaiveSGD(theta, lr=LR, momentum=0.9), p, ALPHA, BETA) for p in params]
    slow = [rule.theta.clone() for rule in rules]
    for step, row in enumerate(grads, start=1):
        for rule, g in zip(rules, row, strict=True):
            rule.step(g)
        if k is not None and step % k == 0:
            slow = [s + 0.5 * (rule.theta - s) for s, rule in zip(slow, rules, strict=True)]
            for rule, s in zip(rules, slow, strict=True):
                rule.rule.theta = s.clone()
    return [rule.theta for rule in rules]


@pytest.mark.parametrize(
    "build",
    [
        lambda ps: po.Lookahead(ESGD(ps, lr=LR, momentum=0.9, alpha=ALPHA, beta=BETA), k=3),
        lambda ps: E(po.Lookahead(SGD(ps, lr=LR, momentum=0.9), k=3), ALPHA, BETA),
    ],
    ids=["Lookahead(E)", "E(Lookahead)"],
)
def test_lookahead_goes_half_way_back_whichever_is_outside(build):
    params = make_params(SHAPES)
    grads = make_grads(params, STEPS)
    expected = by_hand(params, grads, k=3)
    take_steps(build(params), params, grads)
    assert_near(params, expected, 1e-13)
    with pytest.raises(AssertionError):
        assert_near(params, by_hand(make_params(SHAPES), grads), 1e-3)


def test_schedule_free_trains_at_y_and_evaluates_at_x_through_e():
    params = make_params(SHAPES)
    grads = make_grads(params, STEPS)
    optimizer = E(po.ScheduleFreeSGD(params, lr=LR, momentum=0.9), ALPHA, BETA)
    optimizer.train()
    take_steps(optimizer, params, grads)
    # z ← z - γ g', x ← x + (z - x) / t, y = 0.1 z + 0.9 x
    z = [p.detach().clone() for p in make_params(SHAPES)]
    x = [p.clone() for p in z]
    rules = [NaiveE(ALPHA, BETA) for _ in z]
    for t, row in enumerate(grads, start=1):
        z = [a - LR * rule(g) for a, rule, g in zip(z, rules, row, strict=True)]
        x = [b + (a - b) / t for a, b in zip(z, x, strict=True)]
    assert_near(params, [0.1 * a + 0.9 * b for a, b in zip(z, x, strict=True)], 1e-12)
    optimizer.eval()
    assert_near(params, x, 1e-12)
    optimizer.train()
    assert_near(params, [0.1 * a + 0.9 * b for a, b in zip(z, x, strict=True)], 1e-12)


def test_accumulated_gradients_are_one_gradient_to_e():
    params = make_params(SHAPES)
    parts = make_grads(params, 3 * STEPS)
    optimizer = ESGD(params, lr=LR, momentum=0.9, alpha=ALPHA, beta=BETA)
    sums = []
    for k in range(STEPS):
        optimizer.zero_grad()
        for row in parts[3 * k : 3 * k + 3]:
            sum((p * g).sum() for p, g in zip(params, row, strict=True)).div(3).backward()
        sums.append([sum(column) / 3 for column in zip(*parts[3 * k : 3 * k + 3], strict=True)])
        optimizer.step()
    assert_near(params, by_hand(make_params(SHAPES), sums), 1e-13)


def test_clipped_gradients_are_what_e_sees():
    params = make_params(SHAPES)
    grads = make_grads(params, STEPS)
    optimizer = ESGD(params, lr=LR, momentum=0.9, alpha=ALPHA, beta=BETA)
    clipped = []
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        norm = sum(g.square().sum() for g in row).sqrt()
        assert norm > 1
        clipped.append([g / (norm + 1e-6) for g in row])
    assert_near(params, by_hand(make_params(SHAPES), clipped), 1e-13)


def test_an_average_of_the_weights_averages_what_e_made_of_them_and_leaves_it_alone():
    model = torch.nn.Linear(4, 3, dtype=torch.float64)
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    grads = make_grads(params, STEPS)
    optimizer = ESGD(params, lr=LR, momentum=0.9, alpha=ALPHA, beta=BETA)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    expected = None
    for k, row in enumerate(grads):
        take_steps(optimizer, params, [row])
        averaged.update_parameters(model)
        now = by_hand(start, grads[: k + 1])
        expected = now if expected is None else [0.75 * a + 0.25 * b for a, b in zip(expected, now, strict=True)]
    assert_near(averaged.module.parameters(), expected, 1e-13)
    assert_near(params, by_hand(start, grads), 1e-13)


def test_an_average_of_gradients_in_place_is_not_seen_by_the_state_of_e():
    params = make_params(SHAPES)
    (row,) = make_grads(params, 1)
    optimizer = ESGD(params, lr=LR, alpha=ALPHA, beta=BETA)
    take_steps(optimizer, params, [row])
    before = [optimizer.state[p]["explore_ema"].clone() for p in params]
    for p in params:
        p.grad.mul_(3.0)
    assert_same([optimizer.state[p]["explore_ema"] for p in params], before)
