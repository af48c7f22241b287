"""Lamb with ``trust_eps=0`` is optax's lamb."""

from __future__ import annotations

import pytest
import torch
from support import WAYS, assert_near, make_grads, make_params, take_steps
from torch.nn import Parameter

from thalweg import Lamb

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

STEPS = 100
TOLERANCE = 1e-6


def start() -> list[Parameter]:
    zero_layer = Parameter(torch.zeros(2, 3))
    return [*make_params(dtype=torch.float32), zero_layer]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_is_optax_lamb(weight_decay, how):
    params = start()
    grads = make_grads(params, STEPS)

    transformation = optax.lamb(0.01, b1=0.9, b2=0.99, eps=1e-6, weight_decay=weight_decay)
    theirs = [jax.numpy.asarray(p.detach().numpy()) for p in params]
    state = transformation.init(theirs)

    @jax.jit
    def step(row, state, theirs):
        updates, state = transformation.update(row, state, theirs)
        return optax.apply_updates(theirs, updates), state

    for row in grads:
        theirs, state = step([jax.numpy.asarray(g.numpy()) for g in row], state, theirs)

    optimizer = Lamb(
        params, lr=0.01, betas=(0.9, 0.99), eps=1e-6, trust_eps=0.0, weight_decay=weight_decay, **WAYS[how]
    )
    take_steps(optimizer, params, grads)
    assert_near(params, [torch.tensor(jax.device_get(t).tolist()) for t in theirs], TOLERANCE)
