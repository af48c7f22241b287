"""Arguments of torch's Muon that make it another library's, of those that the tests have: ``docs/coming-from.md``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import assert_same, make_grads, random_tensors, take_steps
from torch.nn import Parameter

from thalweg import E

SHAPES, LR, STEPS = ((8, 4), (4, 8)), 0.02, 10
RMS = {"adjust_lr_fn": "match_rms_adamw"}


def after_ten_steps(make):
    params = [Parameter(t) for t in random_tensors(SHAPES, torch.float32, 0)]
    take_steps(make(params), params, make_grads(params, STEPS))
    return [p.detach() for p in params]


def of_torch(**options):
    return after_ten_steps(lambda params: torch.optim.Muon(params, lr=LR, **options))


@pytest.mark.parametrize(("theirs", "torchs"), [({}, {}), ({"use_adjusted_lr": True}, RMS)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_pytorch_optimizers_is_torchs(theirs, torchs, decay):
    library = pytest.importorskip("pytorch_optimizer")
    group = {"use_muon": True, "weight_decay": decay, **theirs}
    found = after_ten_steps(lambda params: library.Muon([{"params": params, **group}], lr=LR, **theirs))
    assert_same(found, of_torch(weight_decay=decay, **torchs))


def test_optax_without_nesterov_momentum_is_torchs_to_the_rounding_of_bfloat16():
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    from optax.contrib import muon

    rule = muon(LR, nesterov=False)
    start = random_tensors(SHAPES, torch.float32, 0)
    params = [jax.numpy.asarray(t.T.numpy()) for t in start]
    state, step = rule.init(params), jax.jit(rule.update)
    for row in make_grads(start, STEPS):
        updates, state = step([jax.numpy.asarray(g.T.numpy()) for g in row], state, params)
        params = optax.apply_updates(params, updates)
    for options, near in (({}, True), (RMS, False)):
        expected = of_torch(weight_decay=0.0, nesterov=False, **options)
        apart = max(np.abs(np.asarray(p).T - e.numpy()).max() / LR for p, e in zip(params, expected, strict=True))
        assert (apart < 0.15) if near else (apart > 1.0)


def test_e_goes_around_torchs_muon_and_leaves_its_update_as_it_is():
    found = after_ten_steps(lambda params: E(torch.optim.Muon(params, lr=LR, **RMS), alpha=0.0, beta=0.9))
    assert_same(found, of_torch(**RMS))
