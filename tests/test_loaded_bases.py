"""What E checks of a state that its base loads, and what it leaves behind."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
from support import assert_same, assert_same_state, make_grads, make_params, state_of, take_steps

from thalweg import E, EAdamW
from thalweg.optim.state import at_rest, restored_on_error

OWN = {"alpha": -0.5, "beta": 0.25}


class Slow(torch.optim.Optimizer):
    """A base of which nothing is known: a velocity and a count of its own."""

    def __init__(self, params, lr=0.125):
        super().__init__(params, {"lr": lr, "drag": 0.5})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("velocity", torch.zeros_like(p)).mul_(group["drag"]).add_(p.grad)
                p.sub_(group["lr"] * state["velocity"])


BASES = {
    "AdamW": lambda ps: EAdamW(ps, **OWN),
    "AdamW, foreach": lambda ps: EAdamW(ps, foreach=True, **OWN),
    "Adafactor": lambda ps: E(torch.optim.Adafactor(ps), **OWN),
    "Slow": lambda ps: E(Slow(ps), **OWN),
}


def trained(base, dtype=torch.float32):
    params = make_params(((3, 4), (5, 2)), dtype)
    optimizer = BASES[base](params)
    take_steps(optimizer, params, make_grads(params, 3))
    return optimizer, params


DAMAGE = {
    "AdamW, integers": ("AdamW", "exp_avg", lambda x: x.long(), "a dense floating-point tensor of that shape"),
    "b, integers": ("Slow", "explore_ema", lambda x: x.long(), "a dense floating-point tensor of that shape"),
    "b, complex": ("AdamW", "explore_ema", lambda x: x + 1j, "a dense floating-point tensor of that shape"),
    "a row cut": ("Adafactor", "row_var", lambda x: x[:2], r"a tensor of shape \(3, 1\)"),
    "a row that is a number": ("Adafactor", "row_var", lambda x: 0.5, r"a tensor of shape \(3, 1\)"),
    "another's shape": ("Slow", "velocity", lambda x: x[:2], "a tensor like the one that is there"),
    "another's list": ("Slow", "velocity", lambda x: x.tolist(), "a tensor like the one that is there"),
    "another's count": ("Slow", "step", lambda _: -1.0, r"a whole number in \[0, inf\)"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_buffer_of_another_kind_is_named_and_the_optimizer_is_as_it_was(case):
    base, name, damage, allowed = DAMAGE[case]
    optimizer, _ = trained(base)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][name] = damage(saved["state"][0].get(name))
    before = state_of(optimizer)
    with pytest.raises(ValueError, match=rf"^{name} of a parameter of shape \(3, 4\) must be {allowed}"):
        optimizer.load_state_dict(saved)
    assert_same_state(optimizer, before)


def test_state_that_is_no_dictionary_is_named():
    for base in ("AdamW", "Slow"):
        optimizer, _ = trained(base)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][1] = [torch.zeros(5, 2)]
        text = r"^the state of a parameter of shape \(5, 2\) must be a dictionary, got "
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict(saved)


@pytest.mark.parametrize(("base", "option"), [("AdamW", "eps"), ("Slow", "drag")])
def test_a_group_that_lacks_an_option_of_the_base_is_refused(base, option):
    """The base's next step would be a KeyError."""
    optimizer, _ = trained(base)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0][option]
    text = rf"^param_groups\[0\] must be \w+'s, with {option}, got \["
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(saved)
    assert option in optimizer.param_groups[0]


@pytest.mark.parametrize("base", BASES)
def test_b_is_as_wide_as_e_computes_and_shares_nothing_with_what_was_loaded(base):
    optimizer, params = trained(base, torch.bfloat16)
    saved = copy.deepcopy(optimizer.state_dict())
    narrow = saved["state"][0]["explore_ema"] = saved["state"][0]["explore_ema"].bfloat16()
    optimizer.load_state_dict(saved)
    b, other = (optimizer.state[p]["explore_ema"] for p in params)
    assert b.dtype == other.dtype == torch.float32
    assert_same([b], [narrow.float()])
    before = saved["state"][1]["explore_ema"].clone()
    take_steps(optimizer, params, make_grads(params, 1))
    assert_same([saved["state"][1]["explore_ema"]], [before])


@pytest.mark.parametrize("base", BASES)
def test_nothing_but_the_parameters_state_is_left_by_a_load(base):
    """What torch's optimizers would make for a parameter is found out with one that has no memory."""
    optimizer, params = trained(base)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert set(optimizer.state) == set(params)


def test_lists_inside_of_tuples_are_restored_too_and_sets_and_queues():
    optimizer, params = trained("AdamW")
    kept = optimizer.kept = ([1], {2}, deque([3]), ({"deep": [4]},))

    def spoil():
        kept[0].append(5)
        kept[1].add(6)
        kept[2].append(7)
        kept[3][0]["deep"].clear()
        optimizer.state.clear()
        raise LookupError

    with pytest.raises(LookupError), restored_on_error(optimizer):
        spoil()
    assert optimizer.kept == ([1], {2}, deque([3]), ({"deep": [4]},))
    assert set(optimizer.state) == set(params)


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)])
def test_at_rest_a_step_changes_nothing_that_was_there(lr):
    class Wanderer(torch.optim.Optimizer):
        """Moves what has state whatever its rate, as averages of weights do."""

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                self.rates.append(group["lr"])
                for p in group["params"]:
                    self.grads.append(p.grad)
                    if p.grad is not None:
                        state = self.state[p]
                        state["moved"] = state.get("moved", 0) + 1
                        p.add_(float(state["moved"] > 1))

    params = make_params(((3,), (2,), (4,)), torch.float32)
    params[2].requires_grad_(False)
    optimizer = Wanderer(params, {"lr": lr})
    optimizer.rates, optimizer.grads = [], []
    params[0].grad = g = torch.ones(3)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    optimizer.rates, optimizer.grads = [], []
    with at_rest(optimizer):
        optimizer.step()
    assert [(type(rate), float(rate)) for rate in optimizer.rates] == [(type(lr), 0.0)]
    assert [None if x is None else x.tolist() for x in optimizer.grads] == [[0.0] * 3, [0.0] * 2, None]
    assert params[0].grad is g
    assert params[1].grad is params[2].grad is None
    assert_same(params, before)
    assert optimizer.state[params[0]]["moved"] == 1
    assert optimizer.param_groups[0]["lr"] is lr


def test_integers_of_a_base_that_torch_makes_floating_point_are_refused():
    """It casts what has the shape of the parameter, or any other, to its dtype."""
    optimizer, params = trained("Slow")
    for p in params:
        optimizer.state[p]["signs"] = torch.ones_like(p, dtype=torch.int64)
    text = r"^signs of a parameter of shape \(3, 4\) must be a tensor like the one that is there, torch\.int64 of "
    with pytest.raises(ValueError, match=text):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.state[params[0]]["signs"].dtype == torch.int64
