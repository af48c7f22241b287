"""FSDP2 with CPUOffloadPolicy, which leaves the step to the CPU: the kernels in C++ take it, on local shards."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import torch
from gathered import all_of, gap
from rank_pool import call_on_ranks
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from thalweg import ALTO, EAdamW, Lamb, param_groups
from thalweg.kernels import foreach, single

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

BUILDS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "ALTO": lambda m: ALTO(param_groups(m, 0.01), lr=0.05, alpha=-0.25, beta=0.5, max_grad_norm=0.5),
    "Lamb": lambda m: Lamb(param_groups(m, 0.01), lr=0.05, nonfinite="propagate"),
    "EAdamW": lambda m: EAdamW(m.parameters(), lr=0.01, alpha=-0.25, beta=0.5, nonfinite="skip"),
}
STEPS = 4


def model_of() -> nn.Sequential:
    """The last layer has one row, so that there are ranks with nothing of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Tanh(), nn.Linear(10, 1)).double()


def train(rank: int, build: str) -> None:
    ranks = dist.get_world_size()
    alone, sharded = model_of(), model_of()
    mesh = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("replicas", "shards"))
    for module in (*sharded, sharded):
        fully_shard(module, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))
    by_one, optimizer = BUILDS[build](alone), BUILDS[build](sharded)
    for k in range(STEPS):
        x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        for model, share in ((alone, x), (sharded, x.chunk(ranks)[rank])):
            model.zero_grad()
            model(share).square().mean().backward()
        by_one.step()
        with contextlib.ExitStack() as nobody_else:
            for module in (foreach, single):
                for name in ("step", "begin", "finish"):
                    nobody_else.enter_context(mock.patch.object(module, name, side_effect=AssertionError))
            optimizer.step()
    assert gap(all_of(sharded, optimizer), all_of(alone, by_one)) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("build", BUILDS)
def test_kernels_in_cpp_take_the_step_of_one_process(build, ranks):
    call_on_ranks(ranks, train, build)
