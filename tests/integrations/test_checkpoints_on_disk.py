"""torch.distributed.checkpoint in a folder, and torch.save, copy and pickle of everything a loop has."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from small_runs import CLASSES, batches, new_model, new_optimizer, new_scheduler, train
from support import assert_moved, assert_same, assert_same_state, clone_params
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

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


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_folder_of_torchs_distributed_checkpoint_continues_bit_for_bit(cls, flat, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer, scheduler = halfway(cls)
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state, "scheduler": scheduler.state_dict()}, checkpoint_id=tmp_path)

    # Other values, so that what was not loaded would be seen.
    torch.manual_seed(1)
    other = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10))
    options_of_group = {"lr": 0.5, "eps": 0.5}
    resumed = new_optimizer(cls, other, **options_of_group)
    resumed_scheduler = new_scheduler(resumed)
    weights, state = get_state_dict(other, resumed, options=options)
    schedule = resumed_scheduler.state_dict()
    loaded = {"model": weights, "optimizer": state, "scheduler": schedule}
    dcp.load(loaded, checkpoint_id=tmp_path)
    set_state_dict(other, resumed, model_state_dict=weights, optim_state_dict=state, options=options)
    resumed_scheduler.load_state_dict(loaded["scheduler"])
    assert resumed.param_groups[0]["eps"] == optimizer.param_groups[0]["eps"]
    assert_same_end((other, resumed, resumed_scheduler), (model, optimizer, scheduler))


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
