"""What a load refuses leaves the optimizer as it was, to the bit; what it accepts, training goes on from."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from support import assert_moved, assert_same, assert_same_state, clone_params, make_grads, make_params, take_steps

from thalweg import ALTO, E, EAdamW, Lamb

OURS = {"ALTO": ALTO, "Lamb": Lamb}
BEFORE = 3


def trained(cls, params=None, **options):
    params = make_params(dtype=torch.float32) if params is None else params
    optimizer = cls(params, lr=0.05, **options)
    take_steps(optimizer, params, make_grads(params, BEFORE))
    return optimizer, params


def in_state(name, value, which=0):
    def damage(saved):
        saved["state"][which][name] = value(saved["state"][which][name]) if callable(value) else value

    return damage


def without(name):
    return lambda saved: saved["state"][1].pop(name)


def in_group(name, value):
    return lambda saved: saved["param_groups"][0].update({name: value})


BUFFER = r"exp_avg of a parameter of shape \(3, 4\)"
DAMAGE = {
    "a buffer of another shape": (
        in_state("exp_avg", lambda t: t[:1]),
        BUFFER + r" must have that shape, got \(1, 4\): where a parameter grows or is pruned, thalweg\.resize_state .*",
    ),
    "one with as many elements": (
        in_state("exp_avg", lambda t: t.reshape(4, 3)),
        BUFFER + r" must have that shape, got \(4, 3\): .*",
    ),
    "a buffer of integers": (
        in_state("exp_avg", lambda t: t.int()),
        BUFFER + r" must be .*, got one of torch\.int32, torch\.strided, of shape \(3, 4\)",
    ),
    "a complex buffer": (
        in_state("exp_avg", lambda t: t.to(torch.complex64)),
        BUFFER + r" must be .*, got one of torch\.complex64, .*",
    ),
    "a sparse buffer": (
        in_state("exp_avg", lambda t: t.to_sparse()),
        BUFFER + r" must be .*, got one of torch\.float32, torch\.sparse_coo, .*",
    ),
    "a number where a buffer belongs": (in_state("exp_avg", 0.5), BUFFER + r" must be a floating-point .*, got 0\.5"),
    "None where a buffer belongs": (in_state("exp_avg", None), BUFFER + " must be a floating-point .*, got None"),
    "a buffer less": (
        without("exp_avg_sq"),
        r"the state of a parameter of shape \(5,\) must be under the names .*, got .*",
    ),
    "no step": (without("step"), r"the state of a parameter of shape \(5,\) must be under the names .*, got .*"),
    **{
        f"step {value}": (
            in_state("step", torch.tensor(value)),
            rf"step of a parameter .* must be a whole number in \[0, inf\), got {re.escape(repr(torch.tensor(value)))}",
        )
        for value in (-5.0, float("nan"), float("inf"), 1.5)
    },
    "a step for each element": (in_state("step", torch.zeros(3)), "step of a parameter .* must be a whole number .*"),
    "a step in words": (
        in_state("step", "three"),
        "step of parameter 0 must be a whole number .*, got 'three'",
    ),
    "lr NaN": (in_group("lr", float("nan")), r"lr must be a number in \[0, inf\), got nan"),
    "eps in words": (in_group("eps", "1e-6"), r"eps must be a number in \[1\.18e-38, inf\), .*, got '1e-6'"),
    "betas of four": (in_group("betas", (0.9,) * 4), r"betas must be 2 numbers in \[0, 1\), got .*"),
    "amsgrad": (in_group("amsgrad", True), r"amsgrad must be False in a state that (ALTO|Lamb) loads, got True"),
    "a misspelt option": (
        in_group("weigth_decay", 0.1),
        "a parameter group must be given options .*, got 'weigth_decay'",
    ),
    "a parameter less": (
        lambda saved: saved["param_groups"][0]["params"].pop(),
        "loaded state dict contains a parameter group that doesn't match the size of optimizer's group",
    ),
    "another group": (
        lambda saved: saved["param_groups"].append(copy.deepcopy(saved["param_groups"][0])),
        "loaded state dict has a different number of parameter groups",
    ),
    "no groups": (lambda saved: saved.pop("param_groups"), r"state_dict must be an optimizer's, .*, got \['state'\]"),
    "a list of numbers for groups": (
        lambda saved: saved.update(param_groups=[1, 2]),
        r"state_dict must be an optimizer's, .*, got \['param_groups', 'state'\]",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("cls", OURS)
def test_after_a_refused_load_the_next_step_is_what_it_would_have_been(cls, damage):
    optimizer, params = trained(OURS[cls])
    twin_params = clone_params(params)
    twin = OURS[cls](twin_params, lr=0.05)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    spoil, text = DAMAGE[damage]
    saved = copy.deepcopy(trained(OURS[cls])[0].state_dict())
    spoil(saved)
    groups = optimizer.param_groups
    with pytest.raises(ValueError, match=f"^{text}$"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups is groups
    assert_same_state(optimizer, twin)
    row = make_grads(params, 1, seed=7)
    take_steps(optimizer, params, row)
    take_steps(twin, twin_params, row)
    assert_same(params, twin_params)


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
def test_the_state_of_another_kind_of_optimizer_is_refused(cls, base):
    """The names of what it keeps are said, and those that were awaited."""
    options = {"momentum": 0.9} if base is torch.optim.SGD else {}
    other, _ = trained(base, **options)
    optimizer, params = trained(OURS[cls])
    before, state = clone_params(params), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^(a parameter group|the state of a parameter of shape .*) must be .*, got "):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    assert_same(params, before)


def test_the_state_of_another_model_is_refused_with_both_shapes():
    other, _ = trained(ALTO, make_params(((6, 4), (5,), (), (2, 3, 1, 2)), torch.float32))
    optimizer, _ = trained(ALTO)
    with pytest.raises(
        ValueError, match=r"^exp_avg of a parameter of shape \(3, 4\) must have that shape, got \(6, 4\): "
    ):
        optimizer.load_state_dict(other.state_dict())


def test_what_a_hook_of_the_user_raises_changes_nothing():
    optimizer, params = trained(ALTO)
    saved, state = optimizer.state_dict(), optimizer.state

    def fail(*_):
        raise LookupError("the user's")

    optimizer.register_load_state_dict_post_hook(fail)
    with pytest.raises(LookupError, match=r"^the user's$"):
        optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.state is state
    take_steps(optimizer, params, make_grads(params, 1))


SOURCES = {
    "Lamb": (Lamb, {}),
    "ALTO": (ALTO, {"alpha": 0.5, "beta": 0.25}),
    "ALTO, narrow": (ALTO, {"alpha": 0.5, "beta": 0.25, "state_dtype": {"explore_ema": torch.bfloat16}}),
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {}),
    "EAdamW": (EAdamW, {"alpha": 0.5, "beta": 0.25}),
    "E(Adam)": (lambda params, lr: E(torch.optim.Adam(params, lr), alpha=0.5, beta=0.25), {}),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("cls", OURS)
def test_training_goes_on_from_the_moments_of_a_relative(cls, source):
    """Its m, v and count of steps, its learning rate; ALTO's α and β1 stay, and its b starts at zero or goes on."""
    build, options = SOURCES[source]
    other, params = trained(build, **options)
    own = {"alpha": 1.5, "beta": 0.75} if cls == "ALTO" else {}
    optimizer = OURS[cls](params, trust_eps=0.25, **own)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["trust_eps"]) == (0.05, 0.25 if "Adam" in source else 1e-6)
    assert set(group) == set(type(optimizer)(make_params()).param_groups[0])
    if cls == "ALTO":
        kept = ("ALTO" in source and (0.5, 0.25)) or (1.5, 0.75)
        assert (group["alpha"], group["beta"]) == kept
    for p in params:
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][name], other.state[p][name]), name
        assert ("explore_ema" in optimizer.state[p]) == (cls == "ALTO" and "explore_ema" in other.state[p])
    before = clone_params(params)
    take_steps(optimizer, params, make_grads(params, 1))
    assert_moved(params, before)
    assert optimizer.state[params[0]]["step"] == BEFORE + 1
    assert ("explore_ema" in optimizer.state[params[0]]) == (cls == "ALTO")


def test_options_of_a_group_that_the_state_lacks_stay_as_they_were_set_there():
    """Not as the optimizer's defaults have them."""
    other, params = trained(torch.optim.AdamW)
    optimizer = ALTO(params, alpha=1.5, beta=0.75)
    optimizer.param_groups[0].update(alpha=-2.0, beta=0.625, trust_eps=0.125)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    group = optimizer.param_groups[0]
    assert (group["alpha"], group["beta"], group["trust_eps"]) == (-2.0, 0.625, 0.125)
