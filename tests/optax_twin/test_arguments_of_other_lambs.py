"""``thalweg.jax.lamb`` with the arguments that make Lamb another library's, wherever it has them."""

from __future__ import annotations

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from cases import gradients, parameters
from support import assert_near
from torch.nn import Parameter

import thalweg.jax as tj
from thalweg import Lamb, lamb_defaults
from thalweg.optim.other_lambs import _ROWS

ARGUMENTS = {library: lamb_defaults(library) for library in _ROWS}
TAKEN = inspect.signature(tj.lamb).parameters
STEPS, LR = 3, 0.02
SOME = slice(None, None, 3)  # a vector, and a matrix at zero


def distinct():
    """A library for each set of arguments; decay is the same in all, as that of most is 0."""
    found = {
        repr({**x, "weight_decay": 0.1, "trust_ratio": True, "max_grad_norm": None}): k for k, x in ARGUMENTS.items()
    }
    return sorted(found.values())


@pytest.mark.parametrize("library", distinct())
def test_what_it_takes_it_does_as_lamb_does(library, float64):
    options = {**ARGUMENTS[library], "weight_decay": 0.1, "trust_ratio": True, "max_grad_norm": None}
    params = [Parameter(torch.from_numpy(p.copy())) for p in parameters()[SOME]]
    optimizer = Lamb(params, lr=LR, **options)
    (b1, b2), own = options["betas"], {name: value for name, value in options.items() if name in TAKEN}
    rule = tj.lamb(LR, b1, b2, **own)
    ours = [jnp.asarray(p) for p in parameters()[SOME]]
    state = rule.init(ours)
    for k in range(STEPS):
        row = [g[k] for g in gradients(STEPS)[SOME]]
        for p, g in zip(params, row, strict=True):
            p.grad = torch.from_numpy(np.array(g))
        optimizer.step()
        updates, state = rule.update([jnp.asarray(g) for g in row], state, ours)
        ours = optax.apply_updates(ours, updates)
    assert_near([torch.from_numpy(np.array(p)) for p in ours], params, 1e-12)


def test_what_it_lacks_it_refuses_by_name():
    """b1 and b2 are its betas, ``trust_mask`` says what is adapted, and optax clips."""
    lacking = {name for arguments in ARGUMENTS.values() for name in arguments if name not in TAKEN}
    assert lacking == {"betas", "trust_ratio", "max_grad_norm"}
    for name in lacking:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            tj.lamb(LR, **{name: ARGUMENTS["timm"][name]})
