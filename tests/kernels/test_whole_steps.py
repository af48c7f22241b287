"""Whole steps of the optimizers on the kernels: what they compute, under the interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import assert_near, assert_same, clone_params, make_grads, make_params, pairwise, take_steps
from torch.nn import Parameter
from torch.optim import AdamW

from thalweg import ALTO, E, Lamb
from thalweg.kernels import single, triton
from thalweg.kernels.finite import all_finite
from thalweg.kernels.footprint import Footprint
from thalweg.optim import one_pass
from thalweg.optim.step_checks import check_gradients

SHAPES = ((3, 4), (65,), (), (0,))
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "complex": torch.complex64}
OPTIONS = {
    "defaults": {},
    "capturable": {"capturable": True},
    "propagate": {"nonfinite": "propagate"},
    "propagate, capturable": {"nonfinite": "propagate", "capturable": True},
    "clipped": {"max_grad_norm": 0.1, "trust_clip": (0.5, 1.0)},
    "no trust ratio, ascending": {"trust_ratio": False, "maximize": True},
}


@pytest.mark.parametrize(
    ("cls", "dtype", "options"), pairwise(itertools.product([ALTO, Lamb], DTYPES.values(), OPTIONS))
)
def test_whole_steps_are_those_of_single(cls, dtype, options, monkeypatch):
    """One of them skipped, of a parameter that has no gradient at first."""
    params = make_params(SHAPES, dtype)
    others = clone_params(params)
    grads = make_grads(params, 3)
    grads[0][0] = None
    if "propagate" not in options:
        grads[1][1][5] = float("nan")
    expected = cls(others, lr=0.1, foreach=False, **OPTIONS[options])
    take_steps(expected, others, grads)
    monkeypatch.setattr("thalweg.kernels.dispatch.choose", lambda *_: triton)
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    optimizer = cls(params, lr=0.1, foreach=False, **OPTIONS[options])
    take_steps(optimizer, params, grads)
    assert_near(
        [p for p in params if p.numel()], [p for p in others if p.numel()], 2**-8 if dtype.itemsize == 2 else 2e-6
    )
    assert optimizer.skipped_steps == expected.skipped_steps == (0 if "propagate" in options else 1)
    for p, other in zip(params, others, strict=True):
        assert_same([optimizer.state[p]["step"]], [expected.state[other]["step"]])


def test_a_closure_is_called_first(monkeypatch):
    monkeypatch.setattr("thalweg.kernels.dispatch.choose", lambda *_: triton)
    weight = Parameter(torch.ones(3))
    optimizer = ALTO([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert not torch.equal(weight, torch.ones(3))


def two_groups(params):
    rest = {
        "lr": torch.tensor(0.05, dtype=torch.float64),
        "betas": (0.8, 0.95),
        "weight_decay": 0.3,
        "explore_alpha": -2.0,
    }
    return [{"params": params[:2]}, {"params": params[2:], **rest}]


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_e_and_adamw_in_one_pass_are_the_base_on_what_e_passes_on(dtype, judged, monkeypatch):
    """The first step and another skipped, told on the device; of parameters without a gradient now and then."""
    params = make_params(SHAPES, dtype)
    others = clone_params(params)
    grads = make_grads(params, 5)
    grads[1][0] = grads[3][0] = None
    if judged:
        grads[0][1][5] = grads[3][2] = torch.tensor(float("inf"), dtype=dtype)
    expected = E(AdamW(two_groups(others), foreach=False, fused=False), 2.0, 0.75, nonfinite="skip")
    take_steps(expected, others, grads)
    monkeypatch.setattr("thalweg.kernels.dispatch.choose", lambda *_: triton)
    monkeypatch.setattr(single, "step", lambda *args: pytest.fail("left to another backend"))
    optimizer = E(AdamW(two_groups(params), fused=True), 2.0, 0.75)
    for row in grads:
        for p, g in zip(params, row, strict=True):
            p.grad = g
        proceed = all_finite(g for g in row if g is not None) if judged else None
        stepped = check_gradients(optimizer.param_groups, optimizer.state, Footprint(), "E")
        one_pass.carry_out(one_pass.plan_step(optimizer.base, optimizer.param_groups, stepped, proceed))
    assert expected.skipped_steps == (2 if judged else 0)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert_near([p for p in params if p.numel()], [p for p in others if p.numel()], tolerance)
    for p, other in zip(params, others, strict=True):
        assert optimizer.state[p].keys() == expected.state[other].keys()
        for name, value in expected.state[other].items():
            if value.numel():
                assert_near([optimizer.state[p][name]], [value], tolerance)
