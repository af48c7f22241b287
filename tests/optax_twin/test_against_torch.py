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
from trees import run

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


COMPLEX = {
    "alto": (lambda ps: thalweg.ALTO(ps, 0.01, weight_decay=0.1), lambda: tj.alto(0.01, weight_decay=0.1)),
    "alto over stacked layers": (
        lambda ps: thalweg.ALTO([{"params": ps[:2]}, {"params": ps[2:], "norm_dims": (-1,)}], 0.01),
        lambda: tj.alto(0.01, norm_axes=[None, None, (-1,), (-1,)]),
    ),
    "lamb": (
        lambda ps: thalweg.Lamb(ps, 0.01, trust_clip=(0.5, 1.0)),
        lambda: tj.lamb(0.01, trust_clip=(0.5, 1.0)),
    ),
    "E of SGD": (
        lambda ps: thalweg.ESGD(ps, 0.01, momentum=0.9, alpha=3.0, beta=0.75),
        lambda: optax.chain(tj.scale_by_exploration(3.0, 0.75), optax.sgd(0.01, momentum=0.9)),
    ),
    "E of Adam": (
        lambda ps: thalweg.EAdam(ps, 0.01, betas=(0.9, 0.99), eps=1e-6),
        lambda: optax.chain(tj.scale_by_exploration(), tj.scale_by_adam(0.9, 0.99), optax.scale(-0.01)),
    ),
    "E of optax's Adam": (
        lambda ps: thalweg.EAdam(ps, 0.01, betas=(0.9, 0.99), eps=1e-6),
        lambda: optax.chain(
            tj.scale_by_exploration(), optax.contrib.split_real_and_imaginary(optax.adam(0.01, 0.9, 0.99, 1e-6))
        ),
    ),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_torchs(name, float64):
    in_torch, in_optax = COMPLEX[name]
    starts = [p + 1j * p[..., ::-1] if p.ndim else p - 2j for p in parameters()]
    grads = [[g[k] * (1.0 - 0.3j) + 0.1j * g[k - 1] for g in gradients()] for k in range(30)]
    params = [Parameter(torch.from_numpy(np.array(p))) for p in starts]
    optimizer = in_torch(params)
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        optimizer.step()
    trained, _ = run(in_optax(), list(map(jnp.asarray, starts)), [list(map(jnp.asarray, row)) for row in grads])
    assert_near([torch.from_numpy(np.array(p)) for p in trained], params, TOLERANCE)


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
