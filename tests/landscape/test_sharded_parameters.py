"""Of shards there is one early error, and what it says to do instead works."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from closed_forms import small_network
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from thalweg import ALTO
from thalweg.landscape import (
    Instruments,
    batch_sharpness,
    gradient_noise,
    hessian_eigenvalues,
    hessian_trace,
    preconditioned_sharpness,
    spectral_density,
    worst_case,
)


@pytest.fixture
def sharded():
    """A network in FSDP2's shards, of a group of this process alone, after a step of ALTO."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, x, y = small_network()
        model = fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        optimizer = ALTO(model.parameters(), lr=0.01, fused=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield model, optimizer, x, y
    finally:
        dist.destroy_process_group()


def test_shards_are_refused_with_the_remedy(sharded):
    model, optimizer = sharded[:2]

    def loss():
        raise AssertionError("refused before anything is computed")

    for call in (
        lambda: preconditioned_sharpness(loss, optimizer),
        lambda: hessian_eigenvalues(loss, model.parameters()),
        lambda: hessian_trace(loss, model.parameters()),
        lambda: spectral_density(loss, model.parameters()),
        lambda: worst_case(loss, model.parameters(), 0.1),
        lambda: batch_sharpness(loss, model.parameters()),
        lambda: gradient_noise(loss, model.parameters()),
        lambda: Instruments(optimizer),
    ):
        with pytest.raises(ValueError, match=r"params must be whole tensors: load what .*get_state_dict.*got 'sharded"):
            call()


def test_the_remedy(sharded):
    model, optimizer, x, y = sharded
    gathered = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    whole, alone = small_network(seed=1)[0], small_network()[0]
    loaded, stepped = (ALTO(one.parameters(), lr=0.01, fused=False) for one in (whole, alone))
    set_state_dict(whole, loaded, model_state_dict=gathered[0], optim_state_dict=gathered[1])
    F.cross_entropy(alone(x), y).backward()
    stepped.step()
    found, expected = (
        preconditioned_sharpness(lambda one=one: F.cross_entropy(one(x), y), by).eta_lambda.item()
        for one, by in ((whole, loaded), (alone, stepped))
    )
    assert found == pytest.approx(expected, rel=1e-9)
