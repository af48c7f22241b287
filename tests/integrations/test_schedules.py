"""Every scheduler of torch drives ALTO and E as it drives AdamW; and α is scheduled like any entry of a group."""

from __future__ import annotations

import inspect

import pytest
import torch
from small_runs import CLASSES, OPTIONS
from support import (
    assert_moved,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    state_of,
    take_steps,
    through_a_file,
)
from torch.optim import lr_scheduler as schedulers
from torch.optim import swa_utils
from torch.optim.swa_utils import SWALR

from thalweg import ALTO, EAdamW

LR, STEPS = 0.05, 12
TABLE = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, milestones=[2, 5], gamma=0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, factor=0.5, total_iters=4),
    "LinearLR": lambda o: schedulers.LinearLR(o, total_iters=6),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, gamma=0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, total_iters=10, power=2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, T_max=8),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1, cycle_momentum=False),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=3), schedulers.ExponentialLR(o, 0.8)], milestones=[4]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, factor=0.5, total_iters=4), schedulers.ExponentialLR(o, 0.8)]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.01, anneal_epochs=6),
}


def test_the_table_has_every_scheduler_of_torch():
    found = {
        name
        for name, cls in (vars(schedulers) | vars(swa_utils)).items()
        if inspect.isclass(cls) and issubclass(cls, schedulers.LRScheduler) and not name.startswith("_")
    }
    assert found - {"LRScheduler"} == set(TABLE)


def drive(optimizer, params, name):
    """The learning rates of the steps."""
    scheduler, rates = TABLE[name](optimizer), []
    for row in make_grads(params, STEPS):
        rates.append([group["lr"] for group in optimizer.param_groups])
        take_steps(optimizer, params, [row])
        if name == "ReduceLROnPlateau":
            scheduler.step(1.0)  # a plateau
        else:
            scheduler.step()
    return rates


def two_groups(params):
    return [{"params": params[:2]}, {"params": params[2:], "lr": LR / 2}]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_scheduler_drives_ours_as_it_drives_adamw_and_the_steps_follow(cls, name):
    """``error``: torch warns where it thinks that the optimizer has not stepped before the scheduler."""
    options = {**OPTIONS[cls], "lr": LR}
    plain_params, params, by_hand_params, constant_params = (make_params(dtype=torch.float32) for _ in range(4))
    rates = drive(cls(two_groups(params), **options), params, name)
    assert rates == drive(torch.optim.AdamW(two_groups(plain_params), lr=LR), plain_params, name)
    assert len({tuple(row) for row in rates}) > 1
    by_hand = cls(two_groups(by_hand_params), **options)
    for row, pair in zip(make_grads(params, STEPS), rates, strict=True):
        for group, rate in zip(by_hand.param_groups, pair, strict=True):
            group["lr"] = rate
        take_steps(by_hand, by_hand_params, [row])
    assert_same(params, by_hand_params)
    take_steps(cls(two_groups(constant_params), **options), constant_params, make_grads(params, STEPS))
    assert_moved(params, constant_params)


@pytest.mark.parametrize(("cls", "key"), [(ALTO, "alpha"), (EAdamW, "explore_alpha")])
def test_a_schedule_of_alpha_is_resumed_with_the_state_dict(cls, key):
    """As in ``examples/alpha_schedule.py``: the entry of the group is what the next step uses, and is saved."""
    alphas = [-3.5, -2.0, 0.0, 0.5, 0.5, 0.25]
    params, resumed_params, constant_params = (make_params(dtype=torch.float32) for _ in range(3))
    grads = make_grads(params, len(alphas))
    options = {"alpha": alphas[0], "beta": 0.75}

    def scheduled(optimizer, params, steps):
        for k in steps:
            if k != 4:  # where α comes out of the state dict
                optimizer.param_groups[0][key] = alphas[k]
            take_steps(optimizer, params, [grads[k]])

    optimizer = cls(params, **options)
    scheduled(optimizer, params, range(4))
    resumed = cls(resumed_params)
    with torch.no_grad():
        for q, p in zip(resumed_params, params, strict=True):
            q.copy_(p)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0][key] == 0.5
    before = clone_params(params)
    scheduled(optimizer, params, range(4, 6))
    scheduled(resumed, resumed_params, range(4, 6))
    assert_moved(params, before)
    assert_same(resumed_params, params)
    assert_same_state(resumed, optimizer)

    take_steps(cls(constant_params, **options), constant_params, grads)
    assert_moved(constant_params, params)


@pytest.mark.parametrize("value", [4.0, -4.0, float("nan")])
@pytest.mark.parametrize(("cls", "key"), [(ALTO, "alpha"), (EAdamW, "explore_alpha")])
def test_a_schedule_that_leaves_the_range_of_alpha_is_told_before_anything_has_changed(cls, key, value):
    params = make_params()
    optimizer = cls(params, alpha=0.5, beta=0.75)
    grads = make_grads(params, 2)
    take_steps(optimizer, params, grads[:1])
    before, state = clone_params(params), state_of(optimizer)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=rf"^{key} must be a number in \(-4, 4\), as .*=0\.75, got {value}$"):
        take_steps(optimizer, params, grads[1:])
    assert_same(params, before)
    assert_same_state(optimizer, state)


@pytest.mark.parametrize("value", [1.0, -0.5, 1.5])
def test_a_schedule_that_leaves_the_range_of_beta_is_told(value):
    params = make_params()
    optimizers = ALTO(params), EAdamW(params)
    optimizers[0].param_groups[0]["beta"] = value
    optimizers[1].param_groups[0]["explore_beta"] = value
    for optimizer, name in zip(optimizers, ("beta", "explore_beta"), strict=True):
        with pytest.raises(ValueError, match=rf"^{name} must be a number in \[0, 1\), got {value}$"):
            take_steps(optimizer, params, make_grads(params, 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda o, **kwargs: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=STEPS, **kwargs),
        lambda o, **kwargs: schedulers.CyclicLR(o, 0.01, 0.1, **kwargs),
    ],
    ids=["OneCycleLR", "CyclicLR"],
)
def test_a_scheduler_that_cycles_momentum_cycles_that_of_the_first_moment_and_not_e(build):
    """By default these write to ``betas[0]``, Adam's momentum."""
    params, by_hand_params = make_params(), make_params()
    optimizer, by_hand = ALTO(params), ALTO(by_hand_params)
    scheduler = build(optimizer)
    momenta = set()
    for row in make_grads(params, STEPS - 1):
        group = optimizer.param_groups[0]
        momenta.add(group["betas"][0])
        by_hand.param_groups[0].update(lr=group["lr"], betas=group["betas"])
        take_steps(optimizer, params, [row])
        take_steps(by_hand, by_hand_params, [row])
        scheduler.step()
    assert len(momenta) > 1
    assert (optimizer.param_groups[0]["betas"][1], optimizer.param_groups[0]["beta"]) == (0.99, 0.99)
    assert_same(params, by_hand_params)
