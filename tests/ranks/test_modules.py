"""Modules that torch itself spreads over ranks, trained by real backward passes beside one that is whole."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from meshes import Spread, cut, here_of, mesh
from networks import Network
from rank_pool import call_on_ranks
from side_by_side import assert_close, size
from support import pairwise
from torch import distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from thalweg import ALTO, ESGD, EAdamW, Lamb, param_groups

pytestmark = pytest.mark.slow
STEPS = 6
BAD_STEP = 4


def sharded(model, **options):
    for layer in (model.up, model.down, model.experts, model.narrow, model.out):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def in_columns_and_rows(model, on):
    return parallelize_module(model, on, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def by_both(model):
    axes = ("dp", 2), ("tp", dist.get_world_size() // 2)
    return sharded(in_columns_and_rows(model, mesh(*axes)["tp"]), mesh=mesh(*axes)["dp"])


SPREAD = {
    "DDP": DistributedDataParallel,
    "FSDP2": sharded,
    "HSDP": lambda m: sharded(m, mesh=mesh(("replicas", 2), ("shards", dist.get_world_size() // 2))),
    "CPU offload": lambda m: sharded(m, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "tensor parallel": lambda m: in_columns_and_rows(m, mesh(("tp", dist.get_world_size()))),
    "FSDP2 x TP": by_both,
}
WITH_E = {"lr": 0.05, "alpha": -0.25, "beta": 0.5}
BUILDS = {
    "ALTO": lambda m: ALTO(param_groups(m), **WITH_E, max_grad_norm=0.5),
    "Lamb": lambda m: Lamb(param_groups(m), lr=0.05, nonfinite="raise", foreach=True),
    "EAdamW": lambda m: EAdamW(m.parameters(), **WITH_E, nonfinite="skip"),
    "ESGD": lambda m: ESGD(m.parameters(), **WITH_E, momentum=0.5, nonfinite="raise"),
}
CASES = pairwise(itertools.product(SPREAD, (2, 4), BUILDS))


def train(rank, layout, build):
    torch.manual_seed(0)
    whole = Network().double()
    spread = SPREAD[layout](copy.deepcopy(whole))
    pairs = list(zip(whole.named_parameters(), spread.parameters(), strict=True))
    one, several = BUILDS[build](whole), BUILDS[build](spread)
    raises = build in ("Lamb", "ESGD")
    for k in range(STEPS):
        for model, optimizer in ((whole, one), (spread, several)):
            x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            said = ""
            if k == BAD_STEP and (rank == 0 or model is whole or layout == "DDP"):
                here_of(next(model.parameters()).grad)[0] = float("nan")
            try:
                optimizer.step()
            except RuntimeError as error:
                said = str(error)
            assert ("infinity" in said) == (raises and k == BAD_STEP), said
        for (name, q), p in pairs:
            spread_as = Spread(p.device_mesh, p.placements) if isinstance(p, DTensor) else None
            assert_close(f"{name} after step {k}", here_of(p), cut(q.detach(), spread_as), 1e-12 * size(q.detach()))
    assert int(one.skipped_steps) == int(several.skipped_steps) == (not raises)


@pytest.mark.parametrize(("layout", "ranks", "build"), CASES)
def test_a_module_is_trained_as_on_one_process(layout, ranks, build):
    call_on_ranks(ranks, train, layout, build)
