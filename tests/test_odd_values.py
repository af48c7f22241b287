"""Whatever is written into a group: the next step raises an error that names it and changes nothing, or it trains."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from support import assert_same, assert_same_state, clone_params, make_grads, make_params, state_of, take_steps

from thalweg import ALTO, Lamb

NAN, INF = math.nan, math.inf
ODD = [
    *(NAN, INF, -INF, -1.0, 1.0, 1.5, 0, 2, -1, 10**400, 1e300, 1e-300, True, False, None, "", "1e-3", b"1", 1j),
    *(
        (),
        (0.9,),
        (0.9, NAN),
        (0.9, 1.0),
        [0.5, 0.5],
        (0.9, 0.99, 0.999),
        ("0.9", "0.99"),
        {},
        {"exp_avg": 3},
        object(),
    ),
    *(Fraction(1, 2), np.float32(0.5), np.float64(NAN), np.array([0.5, 0.5]), torch.float16, torch.int8, int, len),
    *(torch.tensor(0.5), torch.tensor(NAN), torch.tensor(-1.0), torch.ones(2), torch.tensor(1j), torch.tensor(True)),
]
OPTIONS = sorted({*ALTO([torch.zeros(1)]).defaults} - {"params"})


def label(value):
    text = repr(value) if not isinstance(value, int) or abs(value) < 1000 else "huge"
    return text.partition(" at 0x")[0]


def trained(cls):
    """After one step of three, with two groups."""
    params = make_params(dtype=torch.float32)
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    take_steps(optimizer, params, make_grads(params, 3)[:1])
    return optimizer, params


def test_an_odd_capturable_beside_a_tensor_as_learning_rate_is_named():
    """It says whether that tensor may be read."""
    params = make_params(dtype=torch.float32)
    optimizer = Lamb(params, lr=torch.tensor(0.01))
    for value in ODD:
        if getattr(value, "dtype", type(value)) in (bool, torch.bool):
            continue
        optimizer.param_groups[0]["capturable"] = value
        with pytest.raises(ValueError, match=r"^capturable must be True or False, got "):
            take_steps(optimizer, params, make_grads(params, 1))
        assert_same(params, make_params(dtype=torch.float32))
    for value in (True, False, torch.tensor(True)):
        optimizer.param_groups[0]["capturable"] = value
        take_steps(optimizer, params, make_grads(params, 1))


@pytest.mark.parametrize("option", OPTIONS)
def test_an_odd_value_in_a_group_is_named_before_anything_changes_or_trains(option):
    optimizer = params = None
    for value in ODD:
        if optimizer is None:
            optimizer, params = trained(ALTO if option in ("alpha", "beta") else Lamb)
        before, state = clone_params(params), state_of(optimizer)
        optimizer.param_groups[1][option] = value
        text = ""
        try:
            take_steps(optimizer, params, make_grads(params, 3)[1:])
        except ValueError as error:
            text = str(error)
        if text:
            # alpha may be out of range beside a beta
            assert text.startswith((option, "alpha" if option == "beta" else option)), label(value)
            assert ", got " in text
            assert_same(params, before)
            assert_same_state(optimizer, state)
            optimizer.param_groups[1][option] = optimizer.defaults[option]
        else:
            finite = all(p.isfinite().all() for p in params)
            assert finite or (option in ("lr", "weight_decay") and value == 1e300), label(value)
            optimizer = None
    if optimizer is not None:
        take_steps(optimizer, params, make_grads(params, 3)[1:])
        other, expected = trained(type(optimizer))
        take_steps(other, expected, make_grads(params, 3)[1:])
        assert_same(params, expected)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_is_taken_out_of_a_group_is_named_before_anything_changes(option):
    params = make_params(dtype=torch.float32)
    optimizer = ALTO([{"params": params[:2]}, {"params": params[2:]}], lr=0.01)
    take_steps(optimizer, params, make_grads(params, 1))
    before, state = clone_params(params), state_of(optimizer)
    del optimizer.param_groups[1][option]
    with pytest.raises(KeyError, match=rf"^'{option}'$"):
        take_steps(optimizer, params, make_grads(params, 1))
    assert_same(params, before)
    assert_same_state(optimizer, state)


TYPOS = [
    "weigth_decay",
    "weight_decays",
    "Beta",
    "beta1",
    "epss",
    "lrs",
    "momentum",
    "amsgrad",
    "learning_rate",
    "fuse",
]


@pytest.mark.parametrize("key", TYPOS)
def test_a_misspelt_option_is_refused_and_nothing_added(key):
    params = make_params()
    text = rf"^a parameter group must be given options by their names, .*, got '{key}'$"
    with pytest.raises(ValueError, match=text):
        ALTO([{"params": params, key: 0.1}])
    optimizer = ALTO(params[:1])
    with pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": params[1:], key: 0.1})
    assert len(optimizer.param_groups) == 1


def test_what_is_no_option_stays_in_its_group():
    """Names that users and schedulers give to groups, or Megatron and timm."""
    own = {
        "name": "body",
        "initial_lr": 0.1,
        "max_lr": 1.0,
        "lr_scale": 0.5,
        "lr_mult": 1.0,
        "is_expert": False,
        "swa_lr": 1,
    }
    optimizer = ALTO([{"params": make_params(), **own}])
    assert own.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_parameters_without_an_order_are_refused_as_torch_does(cls):
    for build in (cls, torch.optim.AdamW):
        with pytest.raises(TypeError, match="ordered collections"):
            build([{"params": set(make_params())}])
    optimizer = cls(make_params())
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": set(make_params())})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("cls", [ALTO, Lamb])
def test_a_group_with_an_option_out_of_range_is_not_added(cls):
    params = make_params(dtype=torch.float32)
    optimizer = cls(params[:1], lr=0.01)
    with pytest.raises(ValueError, match=r"^eps must be a number in \[1\.18e-38, inf\), .*, got -1\.0$"):
        optimizer.add_param_group({"params": params[1:], "eps": -1.0})
    assert [group["params"] for group in optimizer.param_groups] == [params[:1]]
    optimizer.add_param_group({"params": params[1:]})  # as if nobody had tried
    take_steps(optimizer, params, make_grads(params, 1))
