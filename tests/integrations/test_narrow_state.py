"""State in bfloat16 and 8 bits: on two ranks that of one, and through distributed checkpoints bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rank_pool import call_on_ranks
from support import assert_same
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from thalweg import ALTO, Lamb
from thalweg.kernels import eightbit

MIXED = {"exp_avg": "8bit", "exp_avg_sq": torch.float32, "explore_ema": torch.bfloat16}
NARROW = pytest.mark.parametrize("state_dtype", [torch.bfloat16, "8bit", MIXED], ids=["bfloat16", "8bit", "mixed"])
WIDTH = 128


def new_model(seed=0):
    torch.manual_seed(seed)
    # The last layer has one row, and a second rank nothing of it.
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH), nn.Linear(WIDTH, 1))


def optimizer_of(model, state_dtype, **options):
    return ALTO(model.parameters(), state_dtype=state_dtype, **{"lr": 0.05, "alpha": -5.0, **options})


def train(model, optimizer, steps):
    for k in steps:
        optimizer.zero_grad()
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(k))
        model(x).square().mean().backward()
        optimizer.step()


def stored(optimizer):
    """All that is stored here, as plain tensors."""
    found = []
    for state in optimizer.state.values():
        for t in state.values():
            local = t.to_local() if hasattr(t, "device_mesh") else t
            found += [local.codes, local.scale] if eightbit.is_8bit(local) else [local]
    return found


def save(model, optimizer, folder, options):
    weights, state = get_state_dict(model, optimizer, options=options)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model, optimizer, folder, options, **planning):
    weights, state = get_state_dict(model, optimizer, options=options)
    planner = DefaultLoadPlanner(**planning)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)


@NARROW
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("flat", [False, True])
def test_a_distributed_checkpoint_continues_bit_for_bit(state_dtype, flat, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = new_model()
    optimizer = optimizer_of(model, state_dtype)
    train(model, optimizer, range(3))
    save(model, optimizer, tmp_path, options)
    other = new_model(seed=1)
    resumed = optimizer_of(other, state_dtype, lr=0.5)
    load(other, resumed, tmp_path, options)
    assert resumed.param_groups[0]["state_dtype"] == optimizer.param_groups[0]["state_dtype"]
    assert_same(stored(resumed), stored(optimizer))
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert_same(other.parameters(), model.parameters())
    assert_same(stored(resumed), stored(optimizer))


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


def on_a_rank(rank, state_dtype, foreach, folder):
    whole = new_model()
    models = [whole, copy.deepcopy(whole), new_model(seed=1)]
    for model in models[1:]:
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    alone, sharded, resumed = (optimizer_of(model, state_dtype, foreach=foreach) for model in models)
    train(whole, alone, range(4))
    train(models[1], sharded, range(4))
    pairs = list(zip(models[1].parameters(), whole.parameters(), strict=True))
    gap = max((p.full_tensor() - q).abs().max().item() for p, q in pairs)
    in_8_bits = [
        sum(eightbit.is_8bit(t) for state in o.state.values() for t in state.values()) for o in (alone, sharded)
    ]
    options = StateDictOptions()
    save(models[1], sharded, folder, options)
    load(models[2], resumed, folder, options)
    assert_same(stored(resumed), stored(sharded))
    train(models[1], sharded, range(4, 7))
    train(models[2], resumed, range(4, 7))
    assert_same(*([p.to_local() for p in model.parameters()] for model in models[1:]))
    assert_same(stored(resumed), stored(sharded))
    return gap, in_8_bits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state_dtype", "foreach"),
    [(torch.bfloat16, True), ("8bit", True), (MIXED, False)],
    ids=["bfloat16", "8bit", "mixed"],
)
def test_two_ranks_take_the_step_of_one_and_resume_bit_for_bit(state_dtype, foreach, tmp_path):
    """Blocks end where shards do, and what is rounded at random is rounded by its place in the whole."""
    for gap, in_8_bits in call_on_ranks(2, on_a_rank, state_dtype, foreach, str(tmp_path)):
        assert gap <= 5e-5  # sums in another order move a few numbers across a step of 8 or 16 bits
        assert in_8_bits[0] == in_8_bits[1]
        assert (in_8_bits[0] > 0) == (state_dtype != torch.bfloat16)


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
