"""The update is computed in float32 at least."""

from __future__ import annotations

import pytest
import torch
from support import WAYS, assert_near, assert_same, clone_params, make_grads, make_params, take_steps
from torch.nn import Parameter

from thalweg import ALTO, ESGD, E, Lamb

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
EVERY_WAY = pytest.mark.parametrize("how", WAYS)
STEPS = 6


@HALVES
@EVERY_WAY
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_a_step_in_half_precision_is_the_float32_step_rounded_once(optimizer, dtype, how):
    params = make_params(dtype=dtype)
    wide = [Parameter(p.detach().float()) for p in params]
    narrow_step, wide_step = (optimizer(ps, lr=0.05, **WAYS[how]) for ps in (params, wide))
    for row in make_grads(params, STEPS):
        with torch.no_grad():
            for p, w in zip(params, wide, strict=True):
                w.copy_(p)
        take_steps(narrow_step, params, [row])
        take_steps(wide_step, wide, [[g.float() for g in row]])
        assert_same(params, [w.detach().to(dtype) for w in wide])
    for p, w in zip(params, wide, strict=True):
        assert_same(
            [narrow_step.state[p][key] for key in ("exp_avg", "exp_avg_sq")],
            [wide_step.state[w][key] for key in ("exp_avg", "exp_avg_sq")],
        )


@HALVES
@EVERY_WAY
@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
def test_an_eps_too_small_for_half_precision_still_counts(optimizer, dtype, how):
    """1e-8 is 0 in float16, and so is the square of 1e-4."""
    p = Parameter(torch.ones(3, dtype=dtype))
    g = torch.tensor([0.0, 1e-4, 1e-4], dtype=dtype)
    take_steps(optimizer([p], lr=0.1, eps=1e-8, weight_decay=0.0, **WAYS[how]), [p], [[g]] * 3)
    assert torch.isfinite(p).all()
    assert p[0] == 1.0
    assert p[1] == p[2] < 1.0


@HALVES
@EVERY_WAY
def test_what_the_base_sees_is_computed_in_float32_and_rounded_once(dtype, how):
    params = make_params(dtype=dtype)
    wide = [Parameter(p.detach().float()) for p in params]
    seen = {}

    class Seeing(torch.optim.SGD):
        def step(self, closure=None):
            seen[self] = [p.grad.clone() for group in self.param_groups for p in group["params"]]
            return super().step(closure)

    bases = [Seeing(ps, lr=0.1, **WAYS[how]) for ps in (params, wide)]
    narrow_e, wide_e = (E(base, alpha=3.0, beta=0.75) for base in bases)
    for row in make_grads(params, STEPS):
        take_steps(narrow_e, params, [row])
        take_steps(wide_e, wide, [[g.float() for g in row]])
        assert_same(seen[bases[0]], [h.to(dtype) for h in seen[bases[1]]])


@HALVES
@EVERY_WAY
def test_the_ema_of_small_gradients_does_not_stall(dtype, how):
    """b moves by (1-β1) of the difference: at β1 = 0.999, bfloat16 would stand still far below g."""
    params = [Parameter(torch.ones(2, dtype=dtype))]
    g = torch.full((2,), 0.5, dtype=dtype)
    optimizers = [
        ESGD(params, lr=0.0, alpha=1.0, beta=0.999, **WAYS[how]),
        ALTO(params, lr=0.0, alpha=1.0, beta=0.999, **WAYS[how]),
    ]
    for optimizer in optimizers:
        take_steps(optimizer, params, [[g]] * 600)
        (p,) = params
        assert_near([optimizer.state[p]["explore_ema"]], [torch.full((2,), 0.5 * (1 - 0.999**600))], 1e-4)


def test_a_wide_state_dtype_is_kept_through_load(entry):
    """torch casts state to the dtype of the parameter (pytorch#43706)."""
    params = make_params(entry.shapes, torch.bfloat16)
    optimizer = entry.build(params)
    take_steps(optimizer, params, make_grads(params, STEPS))
    resumed_params = clone_params(params)
    resumed = entry.build(resumed_params)
    resumed.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, resumed_params, strict=True):
        for key in entry.wide:
            assert resumed.state[q][key].dtype == torch.float32, key
            assert torch.equal(resumed.state[q][key], optimizer.state[p][key]), key


@pytest.mark.parametrize("optimizer", [ALTO, Lamb])
@pytest.mark.parametrize(("dtype", "state_dtype"), [(torch.bfloat16, torch.float64), (torch.float64, torch.float32)])
def test_a_configured_state_dtype_is_kept_through_load(optimizer, dtype, state_dtype):
    params = make_params(dtype=dtype)
    trained = optimizer(params, state_dtype=state_dtype)
    take_steps(trained, params, make_grads(params, STEPS))
    resumed_params = clone_params(params)
    resumed = optimizer(resumed_params, state_dtype=state_dtype)
    resumed.load_state_dict(trained.state_dict())
    for p, q in zip(params, resumed_params, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert resumed.state[q][key].dtype == state_dtype
            assert torch.equal(resumed.state[q][key], trained.state[p][key])
