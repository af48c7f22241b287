"""State in 8 bits out of a distributed checkpoint of other state, and in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from thalweg import ALTO, Lamb
from thalweg.kernels import eightbit

WIDTH = 128


def new_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH), nn.Linear(WIDTH, 1))


def optimizer_of(model, state_dtype, **options):
    return ALTO(model.parameters(), state_dtype=state_dtype, **{"lr": 0.05, "alpha": -5.0, **options})


def train(model, optimizer, steps):
    for k in steps:
        optimizer.zero_grad()
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(k))
        model(x).square().mean().backward()
        optimizer.step()


def save(model, optimizer, folder, options):
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model, optimizer, folder, options, **planning):
    weights, state = get_state_dict(model, optimizer, options=options)
    planner = DefaultLoadPlanner(**planning)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("saved", [None, torch.bfloat16])
def test_a_distributed_checkpoint_is_read_into_8_bits_and_the_group_says_so(saved, tmp_path):
    options = StateDictOptions()
    model = new_model()
    optimizer = optimizer_of(model, saved)
    train(model, optimizer, range(3))
    save(model, optimizer, tmp_path, options)
    other = new_model(seed=1)
    resumed = optimizer_of(other, "8bit")
    load(other, resumed, tmp_path, options, allow_partial_load=True)  # float32 counts no rounding
    before = optimizer.state[model[0].weight]["exp_avg"].float()
    after = resumed.state[other[0].weight]["exp_avg"]
    assert eightbit.is_8bit(after)
    assert (eightbit.read(after) - before).norm() < 0.02 * before.norm()
    assert resumed.param_groups[0]["state_dtype"]["exp_avg"] == "8bit"
    train(other, resumed, range(3, 5))
    assert resumed.param_groups[0]["rounding_step"] >= 2


def test_a_fresh_process_reads_8_bits_with_weights_only_as_the_documentation_says(tmp_path):
    model = new_model()
    optimizer = optimizer_of(model, "8bit")
    train(model, optimizer, range(1))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    said = ALTO.__doc__ + Lamb.__doc__
    assert "import torchao.optim`` before ``torch.load(..., weights_only=True)``" in " ".join(said.split())
    script = "import torch, torchao.optim, sys; print(len(torch.load(sys.argv[1], weights_only=True)['state']))"
    command = [sys.executable, "-c", script, str(tmp_path / "state.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.stdout.strip() == str(len(list(model.parameters()))), ran.stderr
