"""The layerwise scaling of LAMB and ALTO."""

from __future__ import annotations

import math

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, take_steps
from torch.nn import Parameter

from thalweg import ALTO, Lamb
from thalweg import equations as eq

LR, EPS = 0.1, 1e-6


def one_step(theta, g, way, **options):
    """What Lamb adds to ``theta`` at its first step, where m̂ = g and v̂ = g²; float64."""
    p = Parameter(torch.tensor(theta, dtype=torch.float64))
    start = p.detach().clone()
    options = {"lr": LR, "eps": EPS, "trust_eps": 0.0, "weight_decay": 0.0, **options}
    take_steps(Lamb([p], **way, **options), [p], [[torch.tensor(g, dtype=torch.float64)]])
    return p.detach() - start


def first_direction(g):
    g = torch.tensor(g, dtype=torch.float64)
    return g / (g.abs() + EPS)


@pytest.mark.parametrize("trust_clip", [None, (0.0, 10.0)])
def test_a_layer_of_zero_norm_moves_with_ratio_one(way, trust_clip):
    g = [0.5, -2.0, 3.0]
    assert_near([one_step([0.0] * 3, g, way, trust_clip=trust_clip)], [-LR * first_direction(g)], 1e-14)


def test_a_layer_of_zero_norm_keeps_moving_when_it_decays(way):
    g = [0.5, -2.0, 3.0]
    assert_near([one_step([0.0] * 3, g, way, weight_decay=0.1)], [-LR * first_direction(g)], 1e-14)


def test_where_r_is_zero_nothing_moves(way):
    assert_same([one_step([3.0, 4.0], [0.0, 0.0], way)], [torch.zeros(2, dtype=torch.float64)])
    assert_same([one_step([0.0, 0.0], [0.0, 0.0], way)], [torch.zeros(2, dtype=torch.float64)])


def test_a_layer_moves_by_lr_times_its_own_norm(way):
    """‖r‖ · ‖θ‖/‖r‖ = ‖θ‖, whatever the gradient and whether it decays or not."""
    for weight_decay in (0.0, 0.3):
        moved = one_step([3.0, 4.0], [1e-3, 70.0], way, weight_decay=weight_decay)
        assert moved.norm().item() == pytest.approx(LR * 5.0, rel=1e-14)


def test_trust_eps_shortens_the_step_as_the_paper_says(way):
    """‖r‖ φ / (‖r‖ + ε2 φ)."""
    r = first_direction([1.0, -1.0]).norm().item()
    moved = one_step([3.0, 4.0], [1.0, -1.0], way, trust_eps=0.5)
    assert moved.norm().item() == pytest.approx(LR * r * 5.0 / (r + 0.5 * 5.0), rel=1e-14)


@pytest.mark.parametrize(("clip", "phi"), [((0.0, 2.0), 2.0), ((7.0, 9.0), 7.0), ((1.0, 10.0), 5.0), ([7, 9], 7.0)])
def test_trust_clip_clamps_the_norm_of_the_layer(way, clip, phi):
    moved = one_step([3.0, 4.0], [1.0, -2.0], way, trust_clip=clip)
    assert moved.norm().item() == pytest.approx(LR * phi, rel=1e-14)


def test_trust_clip_with_a_lower_bound_gives_a_zero_layer_that_norm(way):
    moved = one_step([0.0, 0.0], [1.0, -2.0], way, trust_clip=(0.5, 9.0))
    assert moved.norm().item() == pytest.approx(LR * 0.5, rel=1e-14)


def test_decay_is_inside_the_ratio_and_beside_the_gradient(way):
    theta, g, weight_decay = [3.0, 4.0], [1.0, -1.0], 0.5
    r = first_direction(g) + weight_decay * torch.tensor(theta, dtype=torch.float64)
    moved = one_step(theta, g, way, weight_decay=weight_decay)
    assert_near([moved], [-LR * r * 5.0 / r.norm()], 1e-14)


@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_each_parameter_is_a_layer_of_its_own_however_many_are_in_the_bucket(way, optimizer):
    shapes = ((3, 4), (3, 4), (1,), (), (2, 2))
    together, alone = make_params(shapes), make_params(shapes)
    with torch.no_grad():
        together[1].mul_(100.0)
        alone[1].mul_(100.0)
    grads = make_grads(together, 5)
    take_steps(optimizer(together, lr=LR, **way), together, grads)
    for i, p in enumerate(alone):
        take_steps(optimizer([p], lr=LR, **way), [p], [row[i : i + 1] for row in grads])
    assert_near(together, alone, 1e-14)


def test_without_trust_ratio_a_layer_moves_by_lr_times_r(way):
    g = [0.5, -2.0]
    r = first_direction(g) + 0.1 * torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert_near([one_step([3.0, 4.0], g, way, trust_ratio=False, weight_decay=0.1)], [-LR * r], 1e-14)


@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_decayed_adapts_the_groups_that_decay_at_the_step(way, cls):
    """As if the trust ratio of each group had been set by hand, also where a schedule changes what decays."""
    given, by_hand = make_params(), make_params()
    groups = [{"params": given[:2], "weight_decay": 0.1}, {"params": given[2:], "weight_decay": 0.0}]
    decayed = cls(groups, lr=LR, **way, trust_ratio="decayed")
    groups = [{**group, "params": part} for group, part in zip(groups, (by_hand[:2], by_hand[2:]), strict=True)]
    expected = cls(groups, lr=LR, **way)
    grads = make_grads(given, 9)
    for decays, rows in (((0.1, 0.0), grads[:3]), ((0.0, 0.2), grads[3:6]), ((1e-30, 0), grads[6:])):
        for optimizer in (decayed, expected):
            for group, decay in zip(optimizer.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        for group in expected.param_groups:
            group["trust_ratio"] = group["weight_decay"] > 0
        take_steps(decayed, given, rows)
        take_steps(expected, by_hand, rows)
    assert_same(given, by_hand)
    assert {group["trust_ratio"] for group in decayed.param_groups} == {"decayed"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_a_layer_does_not_overflow_in_half_precision(way, dtype):
    """‖θ‖ of 4096 entries of 256 is 16384, but their squares add up to 2^28, beyond float16's 65504."""
    p = Parameter(torch.full((64, 64), 256.0, dtype=dtype))
    start = clone_params([p])[0]
    g = torch.ones_like(p)
    take_steps(Lamb([p], lr=0.25, trust_eps=0.0, weight_decay=0.0, **way), [p], [[g]])
    assert torch.equal(p, start * 0.75)


def test_the_equation_of_the_ratio_is_elementwise_over_layers(way):
    theta, r = torch.tensor([0.0, 2.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 4.0, 0.0])
    ratio = eq.trust_ratio(theta, r, eps=0.0, clip=None)
    assert ratio.tolist() == [1.0, 1.0, 0.5, 1.0]
    assert math.isfinite(eq.trust_ratio(theta, r, eps=1e-6, clip=(0.0, 1.0)).sum().item())
