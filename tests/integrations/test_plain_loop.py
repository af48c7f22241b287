"""Autocast, GradScaler, accumulation and averaged weights in a loop of plain torch."""

from __future__ import annotations

import pytest
import torch
from small_runs import CLASSES, batches, new_model, new_optimizer, train
from support import assert_moved, assert_near, assert_same, assert_same_state, clone_params, state_of
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from thalweg import ALTO, E

SCALE = 2.0**10
BUILDS = {
    "ALTO": lambda model: new_optimizer(ALTO, model),
    "E(fused AdamW)": lambda model: E(torch.optim.AdamW(model.parameters(), lr=0.01, fused=True), alpha=0.5, beta=0.25),
}


def amp_step(model, optimizer, scaler, batch, factor=1.0):
    """One step of the loop of ``examples/plain_torch.py``; the loss is multiplied by ``factor``."""
    for x, y in zip(*(t.chunk(2) for t in batch), strict=True):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(x), y) / 2
        scaler.scale(loss * factor).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


@pytest.mark.parametrize("build", BUILDS)
def test_a_batch_that_overflows_is_as_if_it_had_never_been_seen_but_for_the_scale(build):
    model, twin = new_model(), new_model()
    optimizer, other = BUILDS[build](model), BUILDS[build](twin)
    scaler, twin_scaler = (torch.amp.GradScaler("cpu", init_scale=SCALE) for _ in range(2))
    data = batches(5)
    for batch in data[:2]:
        amp_step(model, optimizer, scaler, batch)
        amp_step(twin, other, twin_scaler, batch)
    before, state = clone_params(model.parameters()), state_of(optimizer)

    amp_step(model, optimizer, scaler, data[2], factor=float("inf"))
    assert_same(model.parameters(), before)
    assert_same_state(optimizer, state)
    assert scaler.get_scale() == SCALE / 2

    twin_scaler.update(SCALE / 2)
    for batch in data[3:]:
        amp_step(model, optimizer, scaler, batch)
        amp_step(twin, other, twin_scaler, batch)
    assert_moved(model.parameters(), before)
    assert_same(model.parameters(), twin.parameters())
    assert_same_state(optimizer, other)
    assert {float(s["step"]) for s in optimizer.state.values()} == {4.0}


@pytest.mark.parametrize("cls", CLASSES)
def test_accumulated_quarters_are_the_whole_batch(cls):
    """In float64, where only the order of the sums differs."""
    whole, parts = new_model().double(), new_model().double()
    data = [(x.double(), y) for x, y in batches(3)]
    quarters = [(a, b) for x, y in data for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
    train(whole, new_optimizer(cls, whole), data)
    train(parts, new_optimizer(cls, parts), quarters, accumulate=4)
    assert_moved(parts.parameters(), new_model().double().parameters())
    assert_near(parts.parameters(), whole.parameters(), 1e-12)


@pytest.mark.parametrize("cls", CLASSES)
def test_averaged_weights_are_the_recursion_and_leave_training_alone(cls):
    model, alone = new_model(), new_model()
    optimizer = new_optimizer(cls, model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    expected = None
    for batch in batches(4):
        train(model, optimizer, [batch])
        average.update_parameters(model)
        now = clone_params(model.parameters())
        expected = now if expected is None else [0.75 * e + 0.25 * p for e, p in zip(expected, now, strict=True)]
    assert_near(average.parameters(), expected, 1e-6)
    train(alone, new_optimizer(cls, alone), batches(4))
    assert_same(model.parameters(), alone.parameters())
