"""E around our own LAMB is ALTO; around ALTO, which has E already, it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from support import (
    E_WAYS,
    assert_near,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    take_steps,
)

from thalweg import ALTO, E, Lamb

LAMB = {"lr": 0.05, "trust_eps": 0.125, "weight_decay": 0.25}


@pytest.mark.parametrize("way", E_WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_e_around_lamb_is_alto(way, dtype):
    params, twins = make_params(dtype=dtype), make_params(dtype=dtype)
    rows = make_grads(params, 6)
    optimizer = E(Lamb(params, **LAMB, **E_WAYS[way]), alpha=-1.5, beta=0.75)
    alto = ALTO(twins, **LAMB, alpha=-1.5, beta=0.75, **E_WAYS[way])
    take_steps(optimizer, params, rows)
    take_steps(alto, twins, rows)
    assert_near(params, twins, 1e-12)
    for p, q in zip(params, twins, strict=True):
        assert_near([optimizer.state[p]["explore_ema"]], [alto.state[q]["explore_ema"]], 1e-12)


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_training_goes_on_from_a_checkpoint_of_e_around_lamb(state_dtype):
    params = make_params(dtype=torch.float32)
    rows = make_grads(params, 6)
    optimizer = E(Lamb(params, **LAMB, state_dtype=state_dtype), alpha=-1.5, beta=0.75)
    take_steps(optimizer, params, rows[:3])
    others = clone_params(params)
    resumed = E(Lamb(others), alpha=0.5, beta=0.25)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same_state(resumed, optimizer)
    for o, ps in ((optimizer, params), (resumed, others)):
        take_steps(o, ps, rows[3:])
    assert_same(others, params)


def test_e_around_alto_is_refused():
    text = "^optimizer must be an optimizer that E is not wrapped around already, got 'ALTO'$"
    params = make_params()
    for build in (lambda: E(ALTO(params)), lambda: E.of(ALTO)(params)):
        with pytest.raises(ValueError, match=text):
            build()
