"""Accelerate on several processes: DistributedDataParallel on a CPU, and FSDP2 where it is made to take that path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from gathered import all_of, as_under_torchrun, gap
from rank_pool import call_on_ranks
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from thalweg import ALTO, E, EAdamW, param_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

WITH_E = {"alpha": -0.25, "beta": 0.5}
BUILDS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "ALTO": lambda m: ALTO(param_groups(m, 0.01), lr=0.05, max_grad_norm=0.5, **WITH_E),
    "EAdamW": lambda m: EAdamW(m.parameters(), lr=0.01, nonfinite="skip", **WITH_E),
    "E(SGD)": lambda m: E(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5), **WITH_E),
}
STEPS = 3


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def plugin() -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)


def train(rank: int, build: str, fsdp2: bool) -> None:
    """The optimizer has the plain parameters when Accelerate gets it, and shards of them afterwards."""
    with as_under_torchrun(rank) as ranks:
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin())
        if fsdp2:  # what it finds out by looking for GPUs
            accelerator.state.distributed_type = DistributedType.FSDP
            accelerator.state.fsdp_plugin = plugin()
        alone, model = model_of(), model_of()
        by_one, optimizer = BUILDS[build](alone), BUILDS[build](model)
        prepared, wrapped = accelerator.prepare(model, optimizer)
        assert isinstance(prepared, DistributedDataParallel) != fsdp2
        assert isinstance(next(prepared.parameters()), DTensor) == fsdp2
        for k in range(STEPS):
            x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
            by_one.zero_grad()
            alone(x).square().mean().backward()
            by_one.step()
            wrapped.zero_grad()
            accelerator.backward(prepared(x.chunk(ranks)[rank]).square().mean())
            wrapped.step()
        assert gap(all_of(model, optimizer), all_of(alone, by_one)) <= 1e-12
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "fsdp2"), [(2, False), (2, True), (4, True)])
@pytest.mark.parametrize("build", BUILDS)
def test_steps_are_those_of_one_process(build, ranks, fsdp2):
    call_on_ranks(ranks, train, build, fsdp2)
