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
    rows = [list(map(jnp.asarray, row)) for row in grads]
    trained, _ = run(in_optax(), list(map(jnp.asarray, starts)), rows, jit=True)
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
    "ratio_clip": "ratio_clip",
    "bias_correction": "bias_correction",
    "decoupled_decay": "decoupled_decay",
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


def in_both(gradient_rows, in_torch, in_optax):
    """One parameter after a step for each gradient, by torch and by optax."""
    p = Parameter(torch.tensor([3.0, -4.0]))
    optimizer = in_torch([p])
    for g in gradient_rows:
        p.grad = torch.tensor(g)
        optimizer.step()
    ours, state = run(in_optax, jnp.array([3.0, -4.0]), [jnp.array(g) for g in gradient_rows], jit=True)
    return p.detach().numpy(), np.asarray(ours), state


NAN = [float("nan"), 1.0]
FINE = [[1.0, 2.0], [0.5, -1.0]]


def test_apply_if_finite_gives_up_where_skip_does_not():
    """Of six bad steps in a row, 5 allowed, the sixth is applied."""
    skipping = functools.partial(thalweg.ALTO, lr=0.1)
    for bad, limit, poisoned in ((5, 5, False), (6, 5, True), (6, 2**31 - 1, False), (20, 2**31 - 1, False)):
        rows = [FINE[0], *[NAN] * bad, FINE[1]]
        theirs, ours, state = in_both(rows, skipping, optax.apply_if_finite(tj.alto(0.1), limit))
        assert np.isfinite(theirs).all()
        assert np.isnan(ours).any() == poisoned
        assert int(state.total_notfinite) == bad
        if not poisoned:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_apply_if_finite_at_its_largest_count_never_gives_up():
    guarded = optax.apply_if_finite(tj.lamb(0.1), 2**31 - 1)
    params = jnp.array([3.0, -4.0])
    state = guarded.init(params)._replace(notfinite_count=jnp.array(2**31 - 1, jnp.int32))
    for _ in range(2):
        updates, state = guarded.update(jnp.array(NAN), state, params)
        assert not updates.any()
    assert int(state.notfinite_count) == 2**31 - 1


def test_apply_if_finite_looks_at_no_squares():
    rows = [FINE[0], [1e30, 1.0], FINE[1]]
    theirs, ours, state = in_both(rows, functools.partial(thalweg.Lamb, lr=0.1), optax.apply_if_finite(tj.lamb(0.1), 5))
    assert int(state.total_notfinite) == 0
    assert np.isnan(ours).any()
    without, _, _ = in_both([rows[0], rows[2]], functools.partial(thalweg.Lamb, lr=0.1), tj.lamb(0.1))
    np.testing.assert_array_equal(theirs, without)


def test_the_global_norm_is_clipped_as_optax_does_but_for_what_torch_adds_to_it():
    clipped = optax.chain(optax.clip_by_global_norm(0.5), tj.alto(0.1, eps=0.1))
    theirs, ours, _ = in_both(FINE, lambda ps: thalweg.ALTO(ps, lr=0.1, eps=0.1, max_grad_norm=0.5), clipped)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)
    unclipped, *_ = in_both(FINE, lambda ps: thalweg.ALTO(ps, lr=0.1, eps=0.1), clipped)
    assert not np.allclose(unclipped, theirs, rtol=1e-3)
