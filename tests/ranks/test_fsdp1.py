"""FSDP1: what is refused there, and what is right."""

from __future__ import annotations

import warnings

import pytest
import torch
from rank_pool import call_on_ranks
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from thalweg import ALTO, EAdamW, Lamb, param_groups

BATCHES = [torch.linspace(-1.0, 1.0, 16).reshape(4, 4) * (k + 1) for k in range(3)]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def wrapped(whole, use_orig_params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FSDP1 is deprecated, and there is no accelerator
        return FullyShardedDataParallel(whole, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


def refusal(function):
    try:
        function()
    except ValueError as error:
        return str(error)
    return ""


def train(network, optimizer):
    for batch in BATCHES:
        network(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def entries(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()]).tolist()


def under_fsdp1(rank, use_orig_params):
    told = []
    sharded = wrapped(model(), use_orig_params)
    for make in (ALTO, Lamb):
        told.append(refusal(lambda make=make: make(sharded.parameters(), lr=0.1)))
    if use_orig_params:  # otherwise the parameters that an optimizer was given before are no longer the model's
        whole = model()
        early = ALTO(param_groups(whole), lr=0.1)
        late = wrapped(whole, use_orig_params)
        late(BATCHES[0]).square().mean().backward()
        told.append(refusal(early.step))
    optimizer = EAdamW(sharded.parameters(), lr=0.1, alpha=0.5, beta=0.5)
    train(sharded, optimizer)
    with FullyShardedDataParallel.summon_full_params(sharded):
        return told, entries(sharded)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_has_no_layers_and_right_entries(use_orig_params):
    alone = model()
    train(alone, EAdamW(alone.parameters(), lr=0.1, alpha=0.5, beta=0.5))
    for told, trained in call_on_ranks(2, under_fsdp1, use_orig_params):
        assert len(told) == 2 + use_orig_params
        for text in told:
            assert text.startswith("parameters must be whole, or sharded each for itself, for trust_ratio=True")
            assert "fully_shard" in text
        assert trained == pytest.approx(entries(alone), rel=1e-5, abs=1e-6)
