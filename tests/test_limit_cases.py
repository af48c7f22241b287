"""Theorems: a limit of one optimizer is another."""

from __future__ import annotations

import inspect

import pytest
import torch
from support import (
    MATRICES,
    SHAPES,
    WAYS,
    assert_moved,
    assert_near,
    assert_same,
    make_grads,
    make_params,
    take_steps,
)

from thalweg import ALTO, E, Lamb

WITHOUT = {"Optimizer", "LBFGS", "SparseAdam"}  # abstract; evaluates the closure itself; sparse gradients only
BASES = [
    value
    for name, value in sorted(vars(torch.optim).items())
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name not in WITHOUT
]
STEPS = 30


def test_the_bases_are_all_there():
    assert {"Adafactor", "Adam", "AdamW", "ASGD", "Muon", "NAdam", "RAdam", "Rprop", "SGD"} <= {
        base.__name__ for base in BASES
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", BASES)
def test_e_at_alpha_zero_is_the_base_bit_for_bit_and_allocates_nothing(base, dtype):
    shapes = MATRICES if base in (torch.optim.Muon, torch.optim.Adafactor) else SHAPES
    plain, wrapped = make_params(shapes, dtype), make_params(shapes, dtype)
    grads = make_grads(plain, STEPS)
    options = {"momentum": 0.9} if base is torch.optim.SGD else {}
    options["lr"] = 0.1
    take_steps(base(plain, **options), plain, grads)
    optimizer = E(base(wrapped, **options), alpha=0.0)
    take_steps(optimizer, wrapped, grads)
    assert_moved(plain[:2], make_params(shapes, dtype)[:2])
    assert_same(wrapped, plain)
    assert all("explore_ema" not in optimizer.state[p] for p in wrapped)
    assert all(len(optimizer.state[p]) > 0 for p in wrapped)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_alto_at_alpha_zero_is_lamb_bit_for_bit_and_allocates_nothing_more(dtype, how):
    lamb, alto = make_params(dtype=dtype), make_params(dtype=dtype)
    grads = make_grads(lamb, STEPS)
    take_steps(Lamb(lamb, lr=0.01, betas=(0.8, 0.95), **WAYS[how]), lamb, grads)
    optimizer = ALTO(alto, lr=0.01, betas=(0.8, 0.95), beta=0.7, alpha=0.0, **WAYS[how])
    take_steps(optimizer, alto, grads)
    assert_moved(lamb, make_params(dtype=dtype))
    assert_same(alto, lamb)
    assert all(set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in alto)


@pytest.mark.parametrize("how", WAYS)
def test_alto_without_trust_ratio_is_e_around_adamw(how):
    ours, theirs = make_params(), make_params()
    grads = make_grads(ours, STEPS)
    common = {"lr": 0.01, "eps": 1e-6, "weight_decay": 0.1}
    take_steps(ALTO(ours, beta=0.99, alpha=-5.0, trust_ratio=False, **common, **WAYS[how]), ours, grads)
    base = torch.optim.AdamW(theirs, betas=(0.9, 0.99), foreach=False, **common)
    take_steps(E(base, alpha=-5.0, beta=0.99), theirs, grads)
    assert_near(ours, theirs, 1e-12)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_without_trust_ratio_is_adamw(weight_decay, how):
    ours, theirs = make_params(), make_params()
    grads = make_grads(ours, STEPS)
    common = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    take_steps(Lamb(ours, trust_ratio=False, **common, **WAYS[how]), ours, grads)
    take_steps(torch.optim.AdamW(theirs, **common), theirs, grads)
    assert_near(ours, theirs, 1e-12)


def test_e_around_nothing_but_a_rate_sees_the_gradient_through_a_gain():
    """From b = 0 the first step is (1+c) times SGD's."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    p.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    E(torch.optim.SGD([p], lr=1.0), alpha=0.5, beta=0.5).step()
    assert p.tolist() == [1.0 - 1.25, 2.0 + 1.25]
