"""Runs on meshes of two and of four processes beside the same run on one: losses, parameters, and what was sent."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from launching import on_ranks
from mesh_tasks import Narrow, NarrowMixture
from rank_pool import call_on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from thalweg.lab.engine import Execution, Mesh, blocks, placement
from thalweg.records.errors import UserError
from thalweg.sharding import whole

SETTINGS = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.9, "beta2": 0.99, "alpha": -0.5, "beta": 0.5}

ROUNDED = 0.1  # three steps in bf16 on one process are .04 off those in float32, in a vector of a norm


class Run(NamedTuple):
    """``like`` names the run on one process whose numbers it has; at most the share ``off`` of a parameter differs."""

    processes: int
    task: str
    execution: dict[str, Any]
    like: str = ""
    off: float = 1e-5
    precision: str = "no"
    clip: float | None = None


def fsdp2(**more):
    return {"sharding": "fsdp2", **more}


RUNS = {
    "one": Run(1, "Narrow", {}),
    "one in bf16": Run(1, "Narrow", {}, precision="bf16"),
    "two": Run(2, "Narrow", fsdp2(), "one"),
    "two in bf16": Run(2, "Narrow", fsdp2(), "one in bf16", ROUNDED, precision="bf16"),
    "shards after each part": Run(2, "Narrow", fsdp2(micro_batch=2), "one"),
    "shards after the last": Run(2, "Narrow", fsdp2(micro_batch=2, reshard="last"), "one"),
    "compiled": Run(2, "Narrow", fsdp2(compile=True), "one"),
    "copies of shards": Run(4, "Narrow", fsdp2(mesh=Mesh(data=2, shard=2)), "one"),
    "copies, in parts": Run(4, "Narrow", fsdp2(mesh=Mesh(data=2, shard=2), micro_batch=2), "one"),
    "copies alone": Run(4, "Narrow", fsdp2(mesh=Mesh(data=4)), "one"),
    "mixture": Run(1, "NarrowMixture", {}, clip=0.5),
    "experts": Run(2, "NarrowMixture", {"sharding": "fsdp2+ep"}, "mixture", clip=0.5),
    "computed again": Run(
        2, "NarrowMixture", {"sharding": "fsdp2+ep", "activation_checkpointing": True}, "mixture", clip=0.5
    ),
    "tensor": Run(2, "NarrowMixture", fsdp2(mesh=Mesh(tensor=2), micro_batch=6), "mixture", clip=0.5),
    "tensor in bf16": Run(2, "NarrowMixture", fsdp2(mesh=Mesh(tensor=2)), "mixture", ROUNDED, "bf16", 0.5),
    "experts in bf16": Run(2, "NarrowMixture", {"sharding": "fsdp2+ep"}, "mixture", ROUNDED, "bf16", 0.5),
    **{
        " x ".join(axes): Run(
            4, "NarrowMixture", fsdp2(mesh=Mesh(**dict.fromkeys(axes, 2)), micro_batch=3), "mixture", clip=0.5
        )
        for axes in itertools.combinations(("data", "shard", "tensor", "expert"), 2)
    },
}
GATHER, SCATTER, REDUCE = "_allgather_base", "_reduce_scatter_base", "allreduce"


@pytest.mark.slow
def test_runs_on_meshes(tmp_path, subtests):
    """One test, as all of it is found together: workers that share a module's tests would each find it again."""
    for processes in (1, 2, 4):
        on_ranks(processes, [str(Path(__file__).with_name("on_meshes.py")), str(processes), str(tmp_path)])
    found = {name: one for n in (1, 2, 4) for name, one in torch.load(tmp_path / f"{n}.pt").items()}
    for name, run in RUNS.items():
        if run.like:
            with subtests.test("a run on a mesh is the run on one process", name=name):
                same(found[name], found[run.like], run.off)
    for check in CHECKS:
        with subtests.test(check.__doc__):
            check(found)


def same(one, other, off):
    for what in ("loss", "validation"):
        assert one[what] == pytest.approx(other[what], rel=min(off, 1e-4)), what
    assert one["parameters"].keys() == other["parameters"].keys()
    for key, p in other["parameters"].items():
        assert float((one["parameters"][key] - p).norm() / p.norm()) <= off, key


def bytes_in_bf16(found):
    """In bf16 half the bytes are gathered, and sums stay in float32."""
    narrow, full = found["two in bf16"], found["two"]
    assert narrow["calls"] == full["calls"]
    assert narrow["bytes"][GATHER] == full["bytes"][GATHER] / 2
    assert narrow["bytes"][SCATTER] == full["bytes"][SCATTER] > 0


def shards_that_wait(found):
    """Parts of a step share one gather and one sum where shards wait for the last.

    Of three parts, and three groups of parameters: two blocks, gathered for backward again, and what is around.
    """
    calls = found["two"]["calls"], found["shards after each part"]["calls"], found["shards after the last"]["calls"]
    assert [(one[GATHER], one[SCATTER]) for one in calls] == [(5, 3), (15, 9), (3, 3)]


def copies(found):
    """Copies add up their shards once a step."""
    each, parts = found["copies of shards"]["calls"], found["copies, in parts"]["calls"]
    assert (each[SCATTER], parts[SCATTER]) == (3, 6)
    assert each[REDUCE] == parts[REDUCE] == found["two"]["calls"][REDUCE] + 3


def blocks_again(found):
    """Blocks are computed again for backward.

    What a layer of experts exchanges of tokens is, and parameters that are there for backward are not gathered.
    """
    again, once = found["computed again"]["calls"], found["experts"]["calls"]
    assert (again.pop("alltoall_base"), once.pop("alltoall_base")) == (2, 1)
    assert again.pop("all_to_all_single") == once.pop("all_to_all_single") + 2
    assert again == once


def compiled(found):
    """Blocks are compiled where it is asked for."""
    assert found["compiled"]["graphs"] > 0 == found["two"]["graphs"]


CHECKS = bytes_in_bf16, shards_that_wait, copies, blocks_again, compiled


def clipped(rank):
    """Two parameters on meshes of their own, and one that each process has."""
    generator = torch.Generator().manual_seed(0)
    meshes = [init_device_mesh("cpu", (2,), mesh_dim_names=(name,)) for name in ("shard", "expert")]
    alone, spread = [], []
    for on, shape in zip((*meshes, None), ((5, 3), (4, 2), (3,)), strict=True):
        values = torch.randn(2, *shape, generator=generator)
        here = [x if on is None else distribute_tensor(x, on, [Shard(0)], src_data_rank=None) for x in values]
        for some, (start, grad) in ((alone, values), (spread, here)):
            some.append(nn.Parameter(start.clone()))
            some[-1].grad = grad.clone()
    nn.utils.clip_grad_norm_(alone, 0.5)
    placement.clip(spread, 0.5)
    for p, q in zip(spread, alone, strict=True):
        torch.testing.assert_close(whole(p.grad), q.grad)


def test_gradients_are_clipped_to_a_norm_over_all_meshes():
    call_on_ranks(2, clipped)


class Counted(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x).tanh()


def test_a_block_is_computed_again_in_training_alone_and_its_parameters_keep_their_names():
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"only": Counted(3, 3)})])})
    block = model["blocks"][0]
    block.forward = lambda x: block["only"](x)
    x = torch.randn(5, 3)
    block(x).sum().backward()
    wanted = block["only"].weight.grad.clone()
    names = [name for name, _ in model.named_parameters()]
    model.zero_grad()
    blocks.recompute(model)
    block(x).sum().backward()
    assert block["only"].calls == 3
    torch.testing.assert_close(block["only"].weight.grad, wanted, rtol=0, atol=0)
    assert [name for name, _ in model.named_parameters()] == names
    model.eval()
    block(x).sum().backward()
    assert block["only"].calls == 4


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "needs a model with a list of blocks, got Sequential"),
        (nn.Sequential(nn.ModuleList([nn.BatchNorm1d(3)])), "would take statistics of batches twice"),
    ],
)
def test_blocks_that_cannot_be_computed_again_are_refused(model, said):
    with pytest.raises(UserError, match=said):
        blocks.recompute(model)


@pytest.mark.parametrize(
    ("model", "mesh", "precision", "said"),
    [
        (nn.Linear(3, 3), Mesh(tensor=2), "no", "--mesh tensor=2 needs a model that transformers has a plan for"),
        (
            nn.Linear(3, 3),
            Mesh(expert=2),
            "no",
            "--mesh expert must be 1 for a model without layers of stacked experts",
        ),
        (Narrow, Mesh(shard=2, tensor=2), "no", "--mesh tensor=2 needs a model that transformers has a plan for"),
        (NarrowMixture, Mesh(expert=5), "no", "--mesh expert must divide the 384 experts of a layer .*, got 5"),
        (NarrowMixture, Mesh(expert=128, tensor=4), "no", "--mesh expert x tensor must divide the 384 .*, got 128 x 4"),
        (NarrowMixture, Mesh(expert=2), "fp16", "--precision must be no or bf16 with --mesh .* got fp16"),
        (
            NarrowMixture,
            Mesh(tensor=8),
            "no",
            "--mesh tensor must divide the 20 num_attention_heads of the model, got 8",
        ),
    ],
)
def test_a_mesh_that_a_model_cannot_be_on_is_refused(model, mesh, precision, said):
    if isinstance(model, type):
        with torch.device("meta"):
            model = model().model()
    with pytest.raises(UserError, match=said):
        placement.sharded(model, mesh, "cpu", precision)


def test_a_mesh_is_of_all_processes():
    execution = Execution(sharding="fsdp2", mesh=Mesh(data=2, shard=3))
    assert placement.mesh_of(execution, 6) == execution.mesh
    with pytest.raises(UserError, match="--mesh must be of as many processes as there are, 4, got data=2 x shard=3"):
        placement.mesh_of(execution, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mesh": Mesh(shard=2)}, "--mesh is for --sharding fsdp2 or fsdp2[+]ep, got ddp"),
        ({"sharding": "fsdp2+ep", "mesh": Mesh(shard=2)}, "--mesh must have an axis expert with .* got shard=2"),
        ({"reshard": "last", "micro_batch": 2}, "--reshard last is for .* got --sharding ddp and one"),
        ({"reshard": "last", "sharding": "fsdp2"}, "--reshard last is for .* got .* fsdp2 and no --micro-batch"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Execution(**given)
