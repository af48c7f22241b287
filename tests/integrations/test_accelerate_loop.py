"""Accelerate round-trips the state dict in ``prepare``, steps the scheduler, and saves and loads everything."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from small_runs import CLASSES, batches, new_model, new_optimizer, new_scheduler, train
from support import assert_moved, assert_same, assert_same_state
from torch.nn.functional import cross_entropy

ACCUMULATE = 2
BATCHES = 12


def prepared(cls):
    """Everything new, as in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model = new_model()
    optimizer = new_optimizer(cls, model)
    return accelerator, *accelerator.prepare(model, optimizer, new_scheduler(optimizer))


def run(accelerator, model, optimizer, scheduler, data):
    """The learning rate of every step."""
    rates = []
    for x, y in data:
        with accelerator.accumulate(model):
            accelerator.backward(cross_entropy(model(x), y))
            if accelerator.sync_gradients:
                rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return rates


@pytest.mark.parametrize("cls", CLASSES)
def test_the_prepared_loop_is_the_plain_loop_scheduler_included(cls):
    parts = prepared(cls)
    rates = run(*parts, batches(BATCHES))
    model = new_model()
    optimizer = new_optimizer(cls, model)
    train(model, optimizer, batches(BATCHES), new_scheduler(optimizer), accumulate=ACCUMULATE)
    assert_moved(model.parameters(), new_model().parameters())
    assert_same(parts[1].parameters(), model.parameters())
    assert_same_state(parts[2].optimizer, optimizer)
    assert len(set(rates)) == len(rates) == BATCHES // ACCUMULATE
    assert parts[2].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("cls", CLASSES)
def test_load_state_in_new_objects_continues_bit_for_bit(cls, tmp_path):
    data = batches(BATCHES)
    accelerator, *parts = prepared(cls)
    run(accelerator, *parts, data[:6])
    accelerator.save_state(str(tmp_path))
    rates = run(accelerator, *parts, data[6:])

    resumed_accelerator, *resumed = prepared(cls)
    resumed_accelerator.load_state(str(tmp_path))
    assert run(resumed_accelerator, *resumed, data[6:]) == rates
    assert_same(resumed[0].parameters(), parts[0].parameters())
    assert_same_state(resumed[1].optimizer, parts[1].optimizer)
