"""Layers of FSDP2 that step in backward, and gradients that are still to be summed over ranks."""

import copy
from unittest import mock

import pytest
import torch
from networks import Experts
from rank_pool import call_on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from thalweg import ALTO, EAdamW, param_groups, step_in_backward
from thalweg.kernels import foreach

IN_BACKWARD = {
    "ALTO": lambda m: ALTO(param_groups(m), lr=0.1, alpha=0.5, beta=0.5, nonfinite="propagate"),
    "EAdamW": lambda m: EAdamW(m.parameters(), lr=0.1, alpha=0.5, beta=0.5),
}


def whole_and_sharded():
    torch.manual_seed(0)
    layers = nn.Linear(6, 5), nn.LayerNorm(5), Experts(5), nn.Linear(5, 10), nn.Linear(10, 1)
    whole = nn.Sequential(*layers).double()
    # The last layer has one row, and one rank nothing of it.
    sharded = copy.deepcopy(whole)
    for layer in sharded:
        fully_shard(layer)
    fully_shard(sharded)
    return whole, sharded


def backward(model, k):
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    model(x).square().mean().backward()


def gap_between(sharded, whole):
    return max(
        (p.full_tensor() - q).abs().max().item() for p, q in zip(sharded.parameters(), whole.parameters(), strict=True)
    )


def train_in_backward(rank, build):
    whole, sharded = whole_and_sharded()
    optimizers = IN_BACKWARD[build](whole), IN_BACKWARD[build](sharded)
    with pytest.raises(ValueError, match=r"^params must be sharded, with fully_shard, to step in backward: .*, got \("):
        step_in_backward(optimizers[0])
    handle = step_in_backward(optimizers[1])
    freed = True
    for k in range(6):
        for model, optimizer in zip((whole, sharded), optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, k)
            freed &= model is whole or all(p.grad is None for p in model.parameters())
            optimizer.step()
    gap = gap_between(sharded, whole)
    handle.remove()

    def poison(p):
        if rank == 1:
            p.grad.to_local()[-1, 0] = float("nan")

    sharded[0].weight.register_post_accumulate_grad_hook(poison)
    optimizer = IN_BACKWARD["EAdamW"](sharded)
    optimizer.nonfinite = "skip"
    step_in_backward(optimizer, nonfinite_by_layer=True)
    before = [p.full_tensor().clone() for p in sharded.parameters()]
    backward(sharded, 0)
    moved = [not torch.equal(p.full_tensor(), q) for p, q in zip(sharded.parameters(), before, strict=True)]
    return gap, freed, int(optimizer.skipped_steps), moved


def step_on_a_partial_sum(rank):
    mesh = init_device_mesh("cpu", (2,))
    stepped = []
    for options in ({}, {"foreach": False}):
        p = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Replicate()]))
        q = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Shard(0)]))
        optimizer = EAdamW([p, q], lr=0.1, alpha=0.5, beta=0.5, **options)
        versions = [p._version, q._version]
        for k in range(3):
            p.grad = DTensor.from_local(torch.full((3,), k + rank - 1.5), mesh, [Partial()])
            q.grad = DTensor.from_local(torch.full((2,), k + rank - 1.5), mesh, [Shard(0)])
            with mock.patch.object(foreach, "step", side_effect=AssertionError("kernels step the shards")):
                optimizer.step()
        assert all(x._version > version for x, version in zip((p, q), versions, strict=True))  # backward would raise
        stepped.append([p.full_tensor(), q.full_tensor()])
    (p, q), (p_by_base, q_by_base) = stepped
    return torch.equal(p, p_by_base), (q - q_by_base).abs().max().item(), p[0].item(), q.tolist()


def test_a_gradient_still_to_be_summed_is_left_to_the_base():
    for same, gap, p, q in call_on_ranks(2, step_on_a_partial_sum):
        assert same
        assert gap <= 1e-6
        assert p not in (1.0, *q)
        assert q[0] != q[2]


@pytest.mark.parametrize("build", IN_BACKWARD)
def test_two_ranks_step_in_backward_as_one_does_and_leave_out_the_same_layer(build):
    for gap, freed, skipped, moved in call_on_ranks(2, train_in_backward, build):
        assert gap <= 1e-12
        assert freed
        assert skipped == 1
        assert moved == [False] + [True] * 8
