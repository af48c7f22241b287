"""No way to a step without E: methods of a base, entries of a group that nobody reads, states of other optimizers."""

from __future__ import annotations

import copy

import pytest
import pytorch_optimizer as po
import torch
from support import assert_same, clone_params, make_grads, make_params, take_steps
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from thalweg import E, EAdamW
from thalweg.optim.adaptor import PASSED_ON


def test_the_methods_of_sam_are_refused_by_name():
    optimizer = E(po.SAM(make_params(), base_optimizer=SGD, lr=0.1))
    for name in ("first_step", "second_step"):
        with pytest.raises(AttributeError, match=f"'{name}': it is SAM's own, which E does not pass on"):
            getattr(optimizer, name)
        assert callable(getattr(optimizer.base, name))


def test_nothing_of_a_base_is_passed_on_but_what_neither_steps_nor_changes():
    """Every method of every optimizer of pytorch_optimizer that torch's own have not."""
    known = {*dir(Optimizer), *PASSED_ON, *dir(E)}
    own = 0
    for cls in {po.load_optimizer(name) for name in po.get_supported_optimizers()}:
        names = [n for n in dir(cls) if not n.startswith("_") and n not in known and callable(getattr(cls, n))]
        optimizer = E.__new__(E)
        optimizer.__dict__["base"] = cls.__new__(cls)
        for name in names:
            own += 1
            with pytest.raises(AttributeError, match=name):
                getattr(optimizer, name)
    assert own > 50


@pytest.mark.parametrize(("name", "value"), [("alpha", 0.5), ("beta", 0.5)])
def test_e_s_numbers_under_other_names_are_refused_at_the_next_step(name, value):
    """As skorch writes them, set_params(optimizer__alpha=...)."""
    optimizer = EAdamW(params := make_params())
    before = clone_params(params)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name} must be called explore_{name} in a group of E, got {value}"):
        take_steps(optimizer, params, make_grads(params, 1))
    assert_same(params, before)
    del optimizer.param_groups[0][name]
    take_steps(optimizer, params, make_grads(params, 1))
    assert not torch.equal(params[0], before[0])


def test_a_base_with_an_alpha_of_its_own_keeps_it():
    optimizer = E(RMSprop(params := make_params(), alpha=0.9), 0.5, 0.01)
    optimizer.param_groups[0]["alpha"] = 0.8
    take_steps(optimizer, params, make_grads(params, 1))


def damaged(saved, how):
    saved = copy.deepcopy(saved)
    state = saved["state"][0]
    if how == "of SGD":
        return SGD(make_params(), lr=0.1, momentum=0.9).state_dict() | {"state": {0: {"momentum_buffer": None}}}
    if how == "of another model":
        return trained([torch.nn.Parameter(torch.ones(7)) for _ in saved["param_groups"][0]["params"]])[0].state_dict()
    changes = {
        "a number for a buffer": {"exp_avg": 0.5},
        "b of another shape": {"explore_ema": torch.ones(7)},
        "complex": {"exp_avg_sq": state["exp_avg_sq"] + 1j},
        "integers": {"exp_avg": state["exp_avg"].long()},
        "step NaN": {"step": torch.tensor(float("nan"))},
        "step -5": {"step": torch.tensor(-5.0)},
    }
    state.update(changes[how])
    return saved


def trained(params):
    optimizer = EAdamW(params, lr=0.01, alpha=0.5, beta=0.01)
    take_steps(optimizer, params, make_grads(params, 2))
    return optimizer, params


HOW = ["of SGD", "of another model", "a number for a buffer", "b of another shape", "complex", "integers"]


@pytest.mark.parametrize("how", [*HOW, "step NaN", "step -5"])
def test_after_a_refused_load_the_next_step_is_what_it_would_have_been(how):
    optimizer, params = trained(make_params())
    other, others = trained(make_params())
    assert_same(params, others)
    with pytest.raises(ValueError, match=r"must|match"):
        optimizer.load_state_dict(damaged(optimizer.state_dict(), how))
    for some, rows in ((optimizer, params), (other, others)):
        take_steps(some, rows, make_grads(rows, 3))
    assert_same(params, others)
    assert optimizer.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@pytest.mark.parametrize("build", [lambda p: E(AdamW(p), nonfinite="skip"), lambda p: E(SGD(p), nonfinite="skip")])
def test_steps_that_keep_being_skipped_are_warned_of_once_and_their_count_is_saved(build, recwarn):
    optimizer = build(params := make_params())
    bad = [[torch.full_like(p, float("nan")) for p in params]]
    for _ in range(9):
        take_steps(optimizer, params, bad)
    assert not [w for w in recwarn if "in a row" in str(w.message)]
    for _ in range(25):
        take_steps(optimizer, params, bad)
    assert len([w for w in recwarn if "10 steps in a row were skipped" in str(w.message)]) == 1
    fresh = build(make_params())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.skipped_steps == optimizer.skipped_steps == 34
