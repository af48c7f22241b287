"""FSDP2 on two processes: one decision and one norm for all ranks, and the step of a single process."""

import copy
import os
import socket

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from thalweg import ALTO, EAdamW, param_groups

BUILDS = {
    "ALTO": lambda m: ALTO(param_groups(m), lr=0.1, alpha=0.5, betas=(0.5, 0.9, 0.99), max_grad_norm=0.5),
    "ALTO single": lambda m: ALTO(param_groups(m), lr=0.1, alpha=0.5, betas=(0.5, 0.9, 0.99), foreach=False),
    "ALTO fused": lambda m: ALTO(param_groups(m), lr=0.1, alpha=0.5, betas=(0.5, 0.9, 0.99), fused=True),
    "EAdamW": lambda m: EAdamW(m.parameters(), lr=0.1, alpha=0.5, beta=0.5, nonfinite="skip"),
    "EAdamW fused": lambda m: EAdamW(m.parameters(), lr=0.1, alpha=0.5, beta=0.5, nonfinite="skip", fused=True),
}


def train(rank, port, build, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    hidden = 60_000  # so that a layer is larger than a piece, were it not sharded
    whole = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, hidden), nn.Linear(hidden, 1)).double()
    # The last layer has one row, and one rank nothing of it.
    sharded = copy.deepcopy(whole)
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    optimizers = BUILDS[build](whole), BUILDS[build](sharded)
    for k in range(6):
        x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        for model, optimizer in zip((whole, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
        if k == 2:  # in the last row of the first weight, which rank 1 holds and rank 0 never sees
            whole[0].weight.grad[4, 0] = float("nan")
            if rank == 1:
                sharded[0].weight.grad.to_local()[-1, 0] = float("nan")
        for optimizer in optimizers:
            optimizer.step()
    gap = max(
        (p.full_tensor() - q).abs().max().item() for p, q in zip(sharded.parameters(), whole.parameters(), strict=True)
    )
    results.put((rank, gap, [int(optimizer.skipped_steps) for optimizer in optimizers]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_two_ranks_take_the_step_of_one_and_skip_the_same(build):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(train, (port, build, results), nprocs=2)
    for _ in range(2):
        _, gap, skipped = results.get()
        assert gap <= 1e-12
        assert skipped == [1, 1]
