"""torch.save, copy and pickle of everything a loop has."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from small_runs import CLASSES, batches, new_model, new_optimizer, new_scheduler, train
from support import assert_moved, assert_same, assert_same_state, clone_params

HALF = 3


def halfway(cls):
    """A loop after three steps."""
    model = new_model()
    optimizer = new_optimizer(cls, model)
    scheduler = new_scheduler(optimizer)
    train(model, optimizer, batches(HALF), scheduler)
    return model, optimizer, scheduler


def finish(model, optimizer, scheduler):
    train(model, optimizer, batches(2 * HALF)[HALF:], scheduler)
    return model, optimizer


def assert_same_end(resumed, original):
    """Both go on, to the same weights, state and learning rate."""
    before = clone_params(original[0].parameters())
    (resumed_model, resumed_optimizer), (model, optimizer) = finish(*resumed), finish(*original)
    assert_moved(model.parameters(), before)
    assert_same(resumed_model.parameters(), model.parameters())
    assert_same_state(resumed_optimizer, optimizer)
    assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("cls", CLASSES)
def test_one_file_of_weights_optimizer_and_scheduler_loads_with_weights_only(cls, tmp_path):
    parts = halfway(cls)
    torch.save([part.state_dict() for part in parts], tmp_path / "all.pt")
    model = new_model()
    optimizer = new_optimizer(cls, model, lr=0.5)
    fresh = (model, optimizer, new_scheduler(optimizer))
    for part, saved in zip(fresh, torch.load(tmp_path / "all.pt", weights_only=True), strict=True):
        part.load_state_dict(saved)
    assert_same_end(fresh, parts)


def through_torch_save(parts, folder):
    torch.save(parts, folder / "objects.pt")
    return torch.load(folder / "objects.pt", weights_only=False)


COPIES = {
    "deepcopy": lambda parts, folder: copy.deepcopy(parts),
    "pickle": lambda parts, folder: pickle.loads(pickle.dumps(parts)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_copy_of_model_optimizer_and_scheduler_is_a_loop_of_its_own(cls, way, tmp_path):
    """The copied scheduler drives the copied optimizer, and that steps the copied model."""
    parts = halfway(cls)
    copied = COPIES[way](parts, tmp_path)
    before, rate = clone_params(parts[0].parameters()), parts[1].param_groups[0]["lr"]
    twin = COPIES[way](copied, tmp_path)
    finish(*twin)
    assert_same(parts[0].parameters(), before)
    assert parts[1].param_groups[0]["lr"] == rate
    assert_same_end(copied, parts)
