"""torch.amp.GradScaler: a skipped step changes nothing, a step that is not skipped is the unscaled one."""

from __future__ import annotations

import pytest
import torch
from capabilities import TABLE
from support import (
    assert_moved,
    assert_near,
    assert_same,
    assert_same_state,
    clone_params,
    make_grads,
    make_params,
    state_of,
    take_steps,
)

SCALE = 2.0**10
FUSED = [(entry, {"fused": True}) for entry in TABLE if any(o.kwargs == {"fused": True} for o in entry.options)]
BUILDS = [(entry, {}) for entry in TABLE] + FUSED


def scaler():
    return torch.amp.GradScaler(device="cpu", init_scale=SCALE)


def backward(scaler, params, grads):
    for p in params:
        p.grad = None
    scaler.scale(sum((p * g).sum() for p, g in zip(params, grads, strict=True))).backward()


@pytest.mark.parametrize(("which", "kwargs"), BUILDS)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_skipped_step_changes_nothing(which, kwargs, unscale_first):
    params = make_params(which.shapes, torch.float32)
    optimizer, amp = which.build(params, **kwargs), scaler()
    take_steps(optimizer, params, make_grads(params, 2))
    before, state = clone_params(params), state_of(optimizer)
    grads = make_grads(params, 1)[0]
    grads[0].view(-1)[0] = float("inf")
    backward(amp, params, grads)
    if unscale_first:
        amp.unscale_(optimizer)
    amp.step(optimizer)
    amp.update()
    assert_same(params, before)
    assert_same_state(optimizer, state)
    assert amp.get_scale() == SCALE / 2


@pytest.mark.parametrize(("which", "kwargs"), BUILDS)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_step_that_is_not_skipped_is_the_unscaled_step(which, kwargs, unscale_first):
    params, expected = make_params(which.shapes, torch.float32), make_params(which.shapes, torch.float32)
    optimizer, amp = which.build(params, **kwargs), scaler()
    grads = make_grads(params, 4)
    for row in grads:
        backward(amp, params, row)
        if unscale_first:
            amp.unscale_(optimizer)
        amp.step(optimizer)
        amp.update()
    take_steps(which.build(expected, **kwargs), expected, grads)
    assert_moved(params, make_params(which.shapes, torch.float32))
    assert_near(params, expected, 1e-6)
