"""Ranks whose optimizers hold different parameters: torch's ZeRO-1, and stages of a pipeline."""

from __future__ import annotations

import functools
from unittest import mock

import pytest
import torch
from meshes import FROZEN, SMALL, Layout, Spread, mesh, part_of_mesh, spread_out
from rank_pool import call_on_ranks
from side_by_side import LACKING, UNDIVIDED, assert_same, gradients, none, parameters, size, step
from table import OPTIMIZERS, WITH_E
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import Parameter

from thalweg import ALTO, ESGD, EAdamW, Lamb

STEPS = 6
BAD_STEP = 4
ZERO = {
    "ALTO": (ALTO, {**WITH_E, "max_grad_norm": 0.5}),
    "Lamb": (Lamb, {"nonfinite": "raise", "max_grad_norm": 0.5}),
    "EAdamW": (EAdamW, {**WITH_E, "nonfinite": "skip"}),
    "ESGD": (ESGD, {**WITH_E, "momentum": 0.5, "nonfinite": "raise"}),
}
STAGES = {
    "ALTO": {"max_grad_norm": 0.5},
    "Lamb": {"max_grad_norm": 0.5, "nonfinite": "raise"},
    "EAdamW": {"nonfinite": "skip"},
    "ESGD": {"nonfinite": "raise"},
}


def zero(rank, name, held):
    cls, options = ZERO[name]
    pairs = [parameters(UNDIVIDED) for _ in range(2)]
    whole, spread = ({n: params[n] for n in held} for params in pairs)
    one = cls(whole.values(), lr=0.1, **options)
    of_all = functools.partial(cls, process_group=dist.group.WORLD)
    several = ZeroRedundancyOptimizer(spread.values(), optimizer_class=of_all, lr=0.1, **options)
    for k in range(STEPS):
        bad = {held[0]: [()]} if k == BAD_STEP else {}
        grads = gradients(k, pairs[0], UNDIVIDED, bad=bad)[0]
        raised = [step(o, params, {n: grads[n] for n in held}) for o, params in ((one, whole), (several, spread))]
        raises = k == BAD_STEP and options.get("nonfinite") == "raise"
        assert [bool(said) for said in raised] == [raises, raises], raised
        for n in held:
            gap = (spread[n] - whole[n]).detach()
            assert size(gap) <= 1e-12 * size(whole[n].detach()), f"{n} after step {k}"
    assert int(several.optim.skipped_steps) == int(one.skipped_steps) == (options.get("nonfinite", "skip") == "skip")


@pytest.mark.parametrize("held", [("weight", "square", "bias", "experts", "row"), ("weight", "bias")], ids=len)
@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("ranks", [2, 4])
def test_torchs_zero_takes_the_steps_of_one_process(ranks, name, held):
    """On four ranks two have no parameter of the second list."""
    call_on_ranks(ranks, zero, name, held)


def stage_of(rank: int, ranks: int) -> set[str]:
    """Some of the parameters; the last rank has none."""
    return set(list(SMALL)[rank :: ranks - 1]) if rank < ranks - 1 else set()


def pipeline(rank, name, sharded):
    """Two stages of two ranks, or four of one."""
    ranks = dist.get_world_size()
    layout: Layout = UNDIVIDED
    if sharded:
        axes = ("stages", 2), ("shards", ranks // 2)
        on, group = part_of_mesh("shards", *axes), mesh(*axes).get_group("stages")
        layout = {n: Spread(on, (Shard(0),)) if shape else None for n, shape in SMALL.items()}
        held = set(list(SMALL)[rank // 2 :: 2])
    else:
        group, held = dist.group.WORLD, stage_of(rank, ranks)
    whole, spread = parameters(UNDIVIDED), parameters(layout)
    mine = {n: spread[n] for n in SMALL if n in held}
    one = OPTIMIZERS[name](whole, **STAGES[name])
    several = OPTIMIZERS[name](mine, **STAGES[name], process_group=group)
    raises = STAGES[name].get("nonfinite") == "raise"
    lacking = LACKING["missing on some"] if sharded else LACKING["missing on all at times"]
    for k in range(STEPS):
        bad = {"square": [(0,), ()]} if k == BAD_STEP else {}
        there, here = gradients(k, spread, layout, none if bad else lacking, bad)
        with CommDebugMode() as counted:
            raised = step(one, whole, there), step(several, mine, here)
        assert [bool(said) for said in raised] == [raises and bool(bad)] * 2, raised
        assert_same(f"after step {k}", (several, mine), (one, whole), layout, 1e-12)
        if not sharded:
            assert counted.get_total_counts() == 1
    assert int(several.skipped_steps) == int(one.skipped_steps) == (not raises)


@pytest.mark.parametrize(("ranks", "sharded"), [(2, False), (4, False), (4, True)])
@pytest.mark.parametrize("name", STAGES)
def test_stages_of_a_pipeline_have_one_norm_and_one_verdict(name, ranks, sharded):
    call_on_ranks(ranks, pipeline, name, sharded)


def failing_stage(rank):
    held = stage_of(rank, 3)
    params = {n: p for n, p in parameters(UNDIVIDED).items() if n in held}
    optimizer = OPTIMIZERS["ALTO"](params, process_group=dist.group.WORLD)
    before = {n: p.detach().clone() for n, p in params.items()}
    for n, p in params.items():
        p.grad = None if n == FROZEN else torch.ones_like(p)
    if rank == 1:
        optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError if rank == 1 else RuntimeError, match="lr" if rank == 1 else "another rank"):
        optimizer.step()
    assert not any(optimizer.state.values())
    assert all(torch.equal(p, before[n]) for n, p in params.items())


def test_an_error_of_one_stage_is_one_of_all():
    call_on_ranks(3, failing_stage)


def asks_nothing(rank):
    params = parameters(UNDIVIDED)
    grads = gradients(0, params, UNDIVIDED)[0]
    for name in STAGES:
        optimizer = OPTIMIZERS[name](params, nonfinite="propagate", process_group=dist.group.WORLD)
        with CommDebugMode() as counted:
            step(optimizer, params, grads)
        assert counted.get_total_counts() == 0, name


def test_where_nothing_is_decided_together_nobody_is_asked():
    call_on_ranks(2, asks_nothing)


def on_two_equal_meshes(rank):
    first = DeviceMesh.from_group(dist.new_group(), "cpu")
    layers = [
        Parameter(spread_out(torch.ones(5, 2), Spread(first, (Shard(0),)))),
        *fully_shard(nn.Linear(3, 5)).parameters(),
    ]
    assert layers[0].device_mesh == layers[1].device_mesh
    for p in layers:
        p.grad = torch.zeros_like(p)
        with mock.patch("torch.distributed.all_reduce", wraps=dist.all_reduce) as told:
            ALTO([p], **WITH_E).step()
        assert {call.kwargs["group"] for call in told.call_args_list} == {p.device_mesh.get_group()}


def test_a_mesh_is_asked_for_its_own_groups():
    call_on_ranks(4, on_two_equal_meshes)
