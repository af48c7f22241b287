"""Everything is per group: two groups are two optimizers."""

from __future__ import annotations

import pytest
import torch
from support import assert_near, assert_same, make_grads, make_params, take_steps

from thalweg import ALTO, E, EAdamW, Lamb

STEPS = 6


def rounds_by_place(option):
    """Whether numbers are rounded at random, by the place of a parameter among all of an optimizer."""
    stored = option.kwargs.get("state_dtype")
    stored = set(stored.values()) if isinstance(stored, dict) else {stored}
    return bool({torch.bfloat16, "8bit"} & stored) or option.kwargs.get("stochastic_rounding", False)


PER_GROUP = pytest.mark.where(
    test=lambda entry, option: option is not None and option.per_group and not rounds_by_place(option)
)
LAMBS = pytest.mark.where(test=lambda entry: issubclass(entry.constructor, Lamb))


@PER_GROUP
def test_two_groups_with_different_options_are_two_optimizers(entry, option):
    first, second = make_params(entry.shapes, seed=1), make_params(entry.shapes, seed=2)
    alone = make_params(entry.shapes, seed=1), make_params(entry.shapes, seed=2)
    both = first + second
    grads = make_grads(both, STEPS)
    optimizer = entry.build([{"params": first}, {"params": second, **option.group}])
    take_steps(optimizer, both, grads)
    take_steps(entry.build(alone[0]), alone[0], [row[: len(first)] for row in grads])
    take_steps(entry.build(alone[1], **option.kwargs), alone[1], [row[len(first) :] for row in grads])
    assert_same(both, [*alone[0], *alone[1]])


@PER_GROUP
def test_an_added_group_starts_like_an_optimizer_of_its_own_with_the_defaults_filled_in(entry, option):
    first, second = make_params(entry.shapes, seed=1), make_params(entry.shapes, seed=2)
    alone = make_params(entry.shapes, seed=2)
    optimizer = entry.build(first)
    grads = make_grads(first + second, STEPS)
    take_steps(optimizer, first, [row[: len(first)] for row in grads[:2]])
    optimizer.add_param_group({"params": second, **option.group})
    assert set(optimizer.param_groups[0]) <= set(optimizer.param_groups[1])
    take_steps(optimizer, first + second, grads[2:])
    take_steps(entry.build(alone, **option.kwargs), alone, [row[len(first) :] for row in grads[2:]])
    assert_same(second, alone)


def test_a_parameter_in_two_groups_is_refused(entry):
    params = make_params(entry.shapes)
    with pytest.raises(ValueError, match=r"^some parameters appear in more than one parameter group$"):
        entry.build(params).add_param_group({"params": params[0]})


def test_e_takes_its_own_hyperparameters_from_the_groups_of_the_base():
    first, second = make_params(seed=1), make_params(seed=2)
    base = torch.optim.SGD([{"params": first}, {"params": second, "explore_alpha": 0.5, "explore_beta": 0.25}], lr=0.1)
    optimizer = E(base, alpha=-2.0, beta=0.75)
    assert [(g["explore_alpha"], g["explore_beta"]) for g in optimizer.param_groups] == [(-2.0, 0.75), (0.5, 0.25)]
    assert (optimizer.defaults["explore_alpha"], optimizer.defaults["explore_beta"]) == (-2.0, 0.75)


def test_a_bad_group_of_the_base_is_refused_and_the_base_left_as_it_was():
    base = torch.optim.SGD([{"params": make_params(), "explore_beta": 1.0}], lr=0.1)
    with pytest.raises(ValueError, match=r"^explore_beta must be a number in \[0, 1\), got 1\.0$"):
        E(base)
    assert "explore_alpha" not in base.defaults
    assert "explore_alpha" not in base.param_groups[0]


# Clipping: the one option that looks beyond its group.


@LAMBS
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("bound", [0.5, 1e9])
def test_max_grad_norm_clips_as_torch_does_to_the_norm_over_all_groups(entry, foreach, bound):
    def groups(params):
        return [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}]

    ours, theirs = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(ours, STEPS)
    take_steps(entry.build(groups(ours), max_grad_norm=bound, foreach=foreach), ours, grads)
    optimizer = entry.build(groups(theirs), foreach=foreach)
    for row in grads:
        for p, g in zip(theirs, row, strict=True):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, bound)
        assert (norm > bound) == (bound < 1.0)  # one bound clips, the other does not
        optimizer.step()
    assert_near(ours, theirs, 1e-13)


@LAMBS
@pytest.mark.parametrize("foreach", [False, True])
def test_max_grad_norm_of_one_group_measures_all_and_clips_only_its_own(entry, foreach):
    ours, theirs = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(ours, STEPS)
    groups = [{"params": ours[:2], "max_grad_norm": 0.5}, {"params": ours[2:]}]
    take_steps(entry.build(groups, foreach=foreach), ours, grads)
    optimizer = entry.build(theirs, foreach=foreach)
    for row in grads:
        norm = torch.stack([g.square().sum() for g in row]).sum().sqrt()
        scale = 0.5 / (norm + 1e-6)
        for p, g in zip(theirs[:2], row[:2], strict=True):
            p.grad = g * scale
        for p, g in zip(theirs[2:], row[2:], strict=True):
            p.grad = g
        optimizer.step()
    assert_near(ours, theirs, 1e-13)


@LAMBS
def test_nothing_is_clipped_unless_asked(entry):
    """Scaled up a million times, the moments are a million times as large."""
    small, large = make_params(entry.shapes), make_params(entry.shapes)
    grads = make_grads(small, 3)
    optimizers = entry.build(small), entry.build(large)
    take_steps(optimizers[0], small, grads)
    take_steps(optimizers[1], large, [[2.0**20 * g for g in row] for row in grads])
    for p, q in zip(small, large, strict=True):
        assert torch.equal(optimizers[1].state[q]["exp_avg"], 2.0**20 * optimizers[0].state[p]["exp_avg"])


@pytest.mark.parametrize("optimizer", [ALTO, Lamb, EAdamW])
def test_options_of_a_group_are_read_anew_at_every_step(optimizer):
    """As schedulers change them."""
    params, expected = make_params(), make_params()
    changed = optimizer(params, lr=0.01, eps=1e-6, weight_decay=0.0)
    fresh = optimizer(expected, lr=0.02, eps=1e-3, weight_decay=0.1)
    changed.param_groups[0].update({"lr": 0.02, "eps": 1e-3, "weight_decay": 0.1})
    grads = make_grads(params, STEPS)
    take_steps(changed, params, grads)
    take_steps(fresh, expected, grads)
    assert_same(params, expected)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_group_that_calls_an_option_of_e_by_its_argument_is_refused(name):
    """It would be an entry that nobody reads; RMSprop's alpha is its own."""
    (p, q), text = make_params(((2,), (2,))), rf"^{name} must be called explore_{name} in a group of E, got 0\.5$"
    with pytest.raises(ValueError, match=text):
        EAdamW([{"params": [p], name: 0.5}])
    optimizer = EAdamW([p])
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [q], name: 0.5})
    assert len(optimizer.param_groups) == 1
    E.of(torch.optim.RMSprop)([{"params": [p], "alpha": 0.5}]).add_param_group({"params": [q], "alpha": 0.5})
