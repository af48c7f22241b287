"""The optax transformations and the torch optimizers are the same, in float64 over 300 steps."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from cases import AT_ZERO, CASES, STEPS, Case, gradients, parameters
from support import assert_near
from torch.nn import Parameter

import thalweg
import thalweg.jax as tj

TOLERANCE = 1e-12


def trained_by_torch(case: Case) -> list[Parameter]:
    params = [Parameter(torch.from_numpy(p.copy())) for p in map(np.asarray, parameters())]
    optimizer = case.torch(params)
    grads = [torch.from_numpy(g) for g in gradients()]
    for k in range(STEPS):
        case.schedule(optimizer, k)
        for p, g in zip(params, grads, strict=True):
            p.grad = g[k].clone()
        optimizer.step()
    return params


@functools.cache
def trained_by_optax(case: Case) -> list[np.ndarray]:
    optimizer = case.optax()

    @jax.jit
    def train(params, grads):
        def step(carry, row):
            params, state = carry
            updates, state = optimizer.update(row, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0][0]

    return [np.array(p) for p in train(list(map(jnp.asarray, parameters())), list(map(jnp.asarray, gradients())))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_300_steps_are_those_of_torch(case, float64):
    ours = trained_by_optax(case)
    assert all(p.dtype == np.float64 for p in ours)
    assert_near([torch.from_numpy(p) for p in ours], trained_by_torch(case), TOLERANCE)


def test_every_case_is_another_but_alto_at_alpha_0_which_is_lamb(float64):
    names: dict[bytes, list[str]] = {}
    for case in CASES:
        names.setdefault(b"".join(p.tobytes() for p in trained_by_optax(case)), []).append(case.name)
    assert [same for same in names.values() if len(same) > 1] == [["ALTO alpha=0", "LAMB"]]


def test_the_layer_at_zero_starts_there_and_moves(float64):
    case = next(case for case in CASES if case.name == "ALTO by default")
    assert not parameters()[AT_ZERO].any()
    assert trained_by_optax(case)[AT_ZERO].all()


NAMES = {
    "lr": "learning_rate",
    "betas": ("b1", "b2"),
    "alpha": "alpha",
    "beta": "beta",
    "eps": "eps",
    "trust_eps": "trust_eps",
    "weight_decay": "weight_decay",
    "trust_clip": "trust_clip",
    "norm_dims": "norm_axes",
    "state_dtype": "accumulator_dtype",
}


@pytest.mark.parametrize(("ours", "theirs"), [(tj.alto, thalweg.ALTO), (tj.lamb, thalweg.Lamb)])
def test_the_defaults_are_torchs(ours, theirs):
    here, there = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    for name, twin in NAMES.items():
        if name == "lr" or name not in there:
            continue  # optax has no default learning rate
        default = there[name].default
        values = default if isinstance(default, tuple) else (default,)
        names = twin if isinstance(twin, tuple) else (twin,)
        assert tuple(here[n].default for n in names[: len(values)]) == values, name


def test_the_defaults_of_e_are_torchs():
    here = inspect.signature(tj.scale_by_exploration).parameters
    there = inspect.signature(thalweg.E).parameters
    assert all(here[name].default == there[name].default for name in ("alpha", "beta"))
