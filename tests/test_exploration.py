"""E's buffer b: when it exists, and what α scheduled through zero does to it."""

from __future__ import annotations

import pytest
import torch
from support import WAYS, assert_near, assert_same, make_grads, make_params, take_steps, through_a_file

from thalweg import ALTO, ESGD, E
from thalweg import equations as eq

EVERY_WAY = pytest.mark.parametrize("how", WAYS)
BETA = 0.75


def alto(params, alpha, how):
    return ALTO(params, lr=0.01, alpha=alpha, betas=(0.9, 0.99), beta=BETA, **WAYS[how]), "alpha"


def esgd(params, alpha, how):
    return ESGD(params, lr=0.01, alpha=alpha, beta=BETA, **WAYS[how]), "explore_alpha"


KINDS = pytest.mark.parametrize("build", [alto, esgd])


def emas(optimizer, params):
    return [optimizer.state[p]["explore_ema"] for p in params]


@KINDS
@EVERY_WAY
def test_b_is_the_ema_of_the_gradient(build, how):
    params = make_params()
    optimizer, _ = build(params, 1.5, how)
    grads = make_grads(params, 20)
    take_steps(optimizer, params, grads)
    weights = [(1 - BETA) * BETA ** (19 - k) for k in range(20)]
    expected = [sum(w * row[i] for w, row in zip(weights, grads, strict=True)) for i in range(len(params))]
    assert_near(emas(optimizer, params), expected, 1e-14)


@KINDS
@EVERY_WAY
def test_alpha_scheduled_from_zero_to_nonzero_and_back_starts_b_and_keeps_it_up_to_date(build, how):
    params = make_params()
    optimizer, name = build(params, 0.0, how)
    grads = make_grads(params, 12)
    take_steps(optimizer, params, grads[:3])
    assert all("explore_ema" not in optimizer.state[p] for p in params)

    b = [torch.zeros_like(p) for p in params]  # from the first step at which α is not 0

    def follow(rows):
        take_steps(optimizer, params, rows)
        for row in rows:
            for i, g in enumerate(row):
                b[i] = BETA * b[i] + (1 - BETA) * g
        assert_near(emas(optimizer, params), b, 1e-14)

    optimizer.param_groups[0][name] = 2.0
    follow(grads[3:6])
    optimizer.param_groups[0][name] = 0.0
    follow(grads[6:9])
    optimizer.param_groups[0][name] = -1.0
    follow(grads[9:])


@KINDS
@EVERY_WAY
def test_at_alpha_zero_the_gradient_passes_untouched_though_b_exists(build, how):
    """lerp(g, b, 0) is g, bit for bit."""
    scheduled, plain = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    grads = make_grads(scheduled, 6)
    optimizer, name = build(scheduled, 2.0, how)
    reference, _ = build(plain, 0.0, how)
    zero = [[torch.zeros_like(g) for g in row] for row in grads[:1]]
    take_steps(optimizer, scheduled, zero)  # allocates b, and leaves it at zero
    take_steps(reference, plain, zero)
    optimizer.param_groups[0][name] = 0.0
    take_steps(optimizer, scheduled, grads)
    take_steps(reference, plain, grads)
    assert_same(scheduled, plain)
    assert all(b.any() for b in emas(optimizer, scheduled))


@KINDS
def test_b_started_during_training_is_saved_and_loaded(build):
    params = make_params()
    optimizer, name = build(params, 0.0, "single")
    take_steps(optimizer, params, make_grads(params, 2))
    optimizer.param_groups[0][name] = 2.0
    take_steps(optimizer, params, make_grads(params, 2))
    resumed_params = make_params()
    resumed, _ = build(resumed_params, 0.0, "single")
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(emas(resumed, resumed_params), emas(optimizer, params))


@KINDS
@EVERY_WAY
def test_beta_scheduled_during_training_changes_the_next_ema_and_the_gain(build, how):
    params = make_params()
    optimizer, _ = build(params, 1.5, how)
    grads = make_grads(params, 2)
    take_steps(optimizer, params, grads[:1])
    before = [b.clone() for b in emas(optimizer, params)]
    group = optimizer.param_groups[0]
    group["beta" if "beta" in group else "explore_beta"] = 0.5
    take_steps(optimizer, params, grads[1:])
    expected = [0.5 * b + 0.5 * g for b, g in zip(before, grads[1], strict=True)]
    assert_near(emas(optimizer, params), expected, 1e-14)


@EVERY_WAY
def test_parameters_with_and_without_b_go_side_by_side(how):
    """One parameter's gradient appears after the others' b has started."""
    params, alone = make_params(), make_params()
    grads = make_grads(params, 5)
    optimizer = ESGD(params, lr=0.1, alpha=1.5, beta=BETA, **WAYS[how])
    take_steps(optimizer, params, [[*row[:-1], row[-1] if k > 1 else None] for k, row in enumerate(grads)])
    take_steps(ESGD(alone[-1:], lr=0.1, alpha=1.5, beta=BETA), alone[-1:], [row[-1:] for row in grads[2:]])
    assert_near(params[-1:], alone[-1:], 1e-14)


def test_the_equations_modify_nothing():
    g, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    h, new = eq.explore(g, b, alpha=2.0, beta=0.75)
    assert (g.tolist(), b.tolist()) == ([1.0, 2.0], [3.0, 4.0])
    assert h.tolist() == [0.0, 1.0]  # g + 0.5 (g - b)
    assert new.tolist() == [2.5, 3.5]
    m, v = eq.moments(h, b, b, beta2=0.5, beta3=0.5)
    assert (h.tolist(), b.tolist()) == ([0.0, 1.0], [3.0, 4.0])
    assert (m.tolist(), v.tolist()) == ([1.5, 2.5], [1.5, 2.5])


def test_the_gain_is_alpha_over_the_horizon():
    assert eq.gain(-5.0, 0.99) == pytest.approx(-0.05, rel=1e-14)
    assert eq.gain(3.0, 0.75) == 0.75


def test_the_bias_correction_of_a_tensor_is_that_of_a_number():
    for beta in (0.0, 0.5, 0.9, 0.999):
        for step in (1, 2, 10, 1000):
            number = eq.bias_correction(beta, step)
            tensor = eq.bias_correction(beta, torch.tensor(float(step)))
            assert tensor.item() == pytest.approx(number, rel=1e-6)


def test_e_around_e_is_refused():
    params = make_params()
    inner = ESGD(params, lr=0.1)
    with pytest.raises(
        ValueError, match=r"^optimizer must be an optimizer that E is not wrapped around already, got 'ESGD'$"
    ):
        E(inner)
