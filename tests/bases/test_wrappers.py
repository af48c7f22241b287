"""E around wrappers of optimizers that lack torch's hooks on loading: its buffer keeps its dtype all the same."""

from __future__ import annotations

import dataclasses

import pytest
import pytorch_optimizer as po
import torch
from catalogue import BASES, Base, around_sgd
from driving import STEPS, drive, gradients, make, start, wrap
from support import assert_same, clone_params, through_a_file
from torch.nn import Parameter
from torch.optim import SGD

NAMES = {"Lookahead", "Magma", "OrthoGrad", "PCGrad", "ScheduleFreeWrapper"}  # and TRAC


def nested(params):
    """One wrapper in another, and groups that do not follow the order of the parameters."""
    groups = [{"params": params[2:]}, {"params": params[:2], "lr": 0.05}]
    return po.Lookahead(po.OrthoGrad(SGD(groups, lr=0.1, momentum=0.9)), k=2)


class Parts(po.OrthoGrad):
    """Saves the state dicts of its parts in a list."""

    def state_dict(self):
        return {"parts": [super().state_dict()]}

    def load_state_dict(self, saved):
        super().load_state_dict(saved["parts"][0])


WRAPPERS = [
    *(base for base in BASES if base.cls in NAMES),
    dataclasses.replace(next(base for base in BASES if base.cls == "Lookahead"), build=nested, kwargs={}),
    dataclasses.replace(next(base for base in BASES if base.cls == "OrthoGrad"), build=around_sgd(Parts)),
]
IDS = [*(base.cls for base in WRAPPERS[:-2]), "nested", "a list"]


def low(base: Base) -> list[Parameter]:
    return [Parameter(p.detach().bfloat16()) for p in start(base)]


def trained(base):
    params = low(base)
    optimizer = wrap(base, params, beta=0.8)
    drive(base, optimizer, params, gradients(base)[: STEPS // 2])
    return optimizer, params


def buffers(optimizer, params):
    return [optimizer.state[p]["explore_ema"] for p in params]


def test_these_are_the_bases_without_the_hooks():
    without = set()
    for base in BASES:
        if not hasattr(wrap(base, start(base)).base, "_optimizer_load_state_dict_pre_hooks"):
            without.add(base.cls)
    assert without == {*NAMES, "TRAC"}


@pytest.mark.parametrize("way", ["a file", "itself"])
@pytest.mark.parametrize("base", WRAPPERS, ids=IDS)
def test_in_bfloat16_the_buffer_comes_back_unrounded_and_training_goes_on_bit_for_bit(base, way):
    optimizer, params = trained(base)
    expected = [b.clone() for b in buffers(optimizer, params)]
    assert not any(torch.equal(b, b.bfloat16()) for b in expected)  # rounding would be seen
    assert all(b.dtype == torch.float32 for b in expected)
    fresh, others = trained(base) if way == "itself" else (None, clone_params(params))
    fresh = fresh or wrap(base, others, beta=0.8)
    saved = fresh.state_dict() if way == "itself" else through_a_file(optimizer.state_dict())
    fresh.load_state_dict(saved)
    assert_same(buffers(fresh, others), expected)
    for made, ps in ((optimizer, params), (fresh, others)):
        drive(base, made, ps, gradients(base)[STEPS // 2 :], first=STEPS // 2)
    assert_same(others, params)
    assert_same(buffers(fresh, others), buffers(optimizer, params))


def test_around_trac_too_which_alone_takes_no_step_in_bfloat16():
    base = next(base for base in BASES if base.cls == "TRAC")
    params, others = low(base), low(base)
    with pytest.raises(RuntimeError, match="expected both vectors to have same dtype"):
        drive(base, make(base, params), params, gradients(base))
    optimizer, fresh = wrap(base, params), wrap(base, others)
    for p in params:
        optimizer.state[p]["explore_ema"] = torch.full_like(p, 0.1, dtype=torch.float32)
    fresh.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(buffers(fresh, others), buffers(optimizer, params))


@pytest.mark.parametrize("base", WRAPPERS, ids=IDS)
def test_what_was_loaded_is_left_as_it_was(base):
    optimizer, params = trained(base)
    saved = through_a_file(optimizer.state_dict())
    text = str(saved)
    others = clone_params(params)
    fresh = wrap(base, others, beta=0.8)
    fresh.load_state_dict(saved)
    assert str(saved) == text
    pointers = {b.data_ptr() for b in buffers(fresh, others)}
    assert not pointers & set(pointers_of(saved))


def pointers_of(tree):
    if isinstance(tree, torch.Tensor):
        yield tree.data_ptr()
    elif isinstance(tree, dict | list | tuple):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from pointers_of(branch)


class Fails(SGD):
    """Has taken the state in by the time that it fails."""

    def __setstate__(self, state):
        super().__setstate__(state)
        raise KeyError("mask_prob")


def test_a_load_that_fails_half_way_leaves_no_sealed_buffer_behind():
    """What cannot be restored in a base of another package, as E's b has come, is a tensor all the same."""
    sgd, magma = (base for base in BASES if base.name in ("torch.optim.SGD momentum", "pytorch_optimizer.Magma"))
    for base, fails, lost in ((magma, magma, "mask_prob"), (sgd, dataclasses.replace(sgd, build=Fails), None)):
        optimizer, params = trained(base)
        saved = through_a_file(optimizer.state_dict())
        saved.pop(lost, None)
        others = clone_params(params)
        fresh = wrap(fails, others, beta=0.8)
        with pytest.raises(ValueError, match="mask_prob"):
            fresh.load_state_dict(saved)
        assert not fresh.base.state


class Casts(po.OrthoGrad):
    """Casts whatever is in a state before it hands it on."""

    def load_state_dict(self, saved):
        state = {i: {key: value.bfloat16() for key, value in s.items()} for i, s in saved["state"].items()}
        super().load_state_dict({**saved, "state": state})


def test_a_wrapper_that_would_round_the_buffer_itself_is_refused():
    base = dataclasses.replace(WRAPPERS[0], build=lambda params: Casts(SGD(params, lr=0.1, momentum=0.9)), kwargs={})
    optimizer, _ = trained(base)
    with pytest.raises(AttributeError, match=r"must not cast state that keeps its dtype: .* 'bfloat16'$"):
        optimizer.load_state_dict(optimizer.state_dict())
