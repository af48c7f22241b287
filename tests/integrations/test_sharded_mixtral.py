"""Mixtral as transformers' ``DistributedConfig`` shards it: on one mesh or two, plain parameters beside DTensors."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from gathered import all_of, gap, give_gradients, give_values
from rank_pool import call_on_ranks
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from thalweg import ALTO, EAdamW, Lamb, param_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from torch.optim import Optimizer

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "initializer_range": 0.1,
}


class Sharding(NamedTuple):
    """How many ranks there are and what they share; then what is to come of it.

    ``collectives`` are those of a step of ALTO that clips and skips. Parameters are off those of one process by ``gap``
    at most: 1e-12 in float64, more where routers compute in float32 on some ranks' share alone.
    """

    ranks: int
    sizes: dict[str, int]
    layouts: dict[str, str]
    collectives: int
    gap: float
    dtype: torch.dtype = torch.float64


Q, NORM, ROUTER, EXPERTS = "q_proj.weight", "norm.weight", "gate.weight", "gate_up_proj"
SHARDINGS = {
    "tp": Sharding(
        2,
        {"tp_size": 2},
        {Q: "tp: S(0)", NORM: "plain", ROUTER: "plain", EXPERTS: "tp: _S(1, 2)"},
        2,
        2e-5,
    ),
    "tp x ep": Sharding(
        2,
        {"tp_size": 2, "ep_size": 2},
        {Q: "tp: S(0)", NORM: "plain", ROUTER: "plain", EXPERTS: "ep: S(0)"},
        2,
        1e-12,
    ),
    # In groups of one rank torch divides gradients of float64 and float16 twice: those of experts are half here.
    "fsdp x ep, a group of one": Sharding(
        2,
        {"fsdp_size": 2, "ep_size": 2},
        {Q: "fsdp: S(0)", NORM: "fsdp: S(0)", EXPERTS: "efsdp, ep: _S(0, 2)S(0)"},
        2,
        2e-5,
        torch.float32,
    ),
    "fsdp x ep": Sharding(
        4,
        {"fsdp_size": 4, "ep_size": 2},
        {Q: "fsdp: S(0)", NORM: "fsdp: S(0)", EXPERTS: "efsdp, ep: _S(0, 2)S(0)"},
        2,
        1e-12,
    ),
    "fsdp x tp": Sharding(
        4,
        {"fsdp_size": 2, "tp_size": 2},
        {Q: "fsdp, tp: _S(0, 2)S(0)", NORM: "fsdp: S(0)", EXPERTS: "fsdp, tp: S(0)_S(1, 2)"},
        5,
        2e-5,
    ),
    "fsdp x tp x ep": Sharding(
        4,
        {"fsdp_size": 2, "tp_size": 2, "ep_size": 2},
        {Q: "fsdp, tp: _S(0, 2)S(0)", NORM: "fsdp: S(0)", EXPERTS: "efsdp, ep: _S(0, 2)S(0)"},
        4,
        1e-12,
    ),
    "hsdp": Sharding(
        4,
        {"dp_replicate_size": 2, "fsdp_size": 2},
        {Q: "dp_replicate, fsdp: RS(0)", EXPERTS: "dp_replicate, fsdp: RS(0)"},
        2,
        1e-12,
    ),
}
BUILDS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "ALTO": lambda m: ALTO(param_groups(m, 0.01), lr=0.01, alpha=-0.25, beta=0.5, max_grad_norm=0.5),
    "Lamb": lambda m: Lamb(param_groups(m, 0.01), lr=0.01, nonfinite="propagate"),
    "EAdamW": lambda m: EAdamW(m.parameters(), lr=0.01, eps=1e-4, alpha=-0.25, beta=0.5, nonfinite="skip"),
}
STEPS, BAD_STEP = 3, 1


def quietly() -> None:
    from transformers.utils import logging as theirs

    theirs.disable_progress_bar()
    warnings.simplefilter("ignore")
    for name in ("transformers", "torch.distributed.tensor._redistribute", "torch.distributed.tensor"):
        logging.getLogger(name).setLevel(logging.ERROR)


def layout_of(p: Tensor) -> str:
    if not isinstance(p, DTensor):
        return "plain"
    return f"{', '.join(p.device_mesh.mesh_dim_names)}: {''.join(map(str, p.placements))}"


def backward(model: nn.Module, ids: Tensor) -> None:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()


def poison(model: nn.Module) -> None:
    """A NaN in the last number of the embedding, wherever that is."""
    grad = next(model.parameters()).grad
    if isinstance(grad, DTensor):
        at = zip(grad.placements, grad.device_mesh.get_coordinate(), grad.device_mesh.shape, strict=True)
        if any(hasattr(placement, "dim") and coordinate < size - 1 for placement, coordinate, size in at):
            return
        grad = grad.to_local()
    grad[-1, -1] = torch.nan


def train(rank: int, folder: str, name: str) -> None:
    from transformers import MixtralForCausalLM
    from transformers.distributed import DistributedConfig

    quietly()
    ranks, sizes, layouts, collectives, limit, dtype = SHARDINGS[name]
    options = {"dtype": dtype, "experts_implementation": "eager"}
    alone, fed = (MixtralForCausalLM.from_pretrained(folder, **options) for _ in range(2))
    sharded = MixtralForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**sizes), **options)
    for n, p in sharded.named_parameters():
        for end, layout in layouts.items():
            assert not n.endswith(end) or layout_of(p) == layout, f"{n}: {layout_of(p)}"
    shares = sizes.get("fsdp_size", 1) * sizes.get("dp_replicate_size", 1)
    for build, make in BUILDS.items():
        for model in (alone, fed):
            give_values(sharded, model)
        optimizers = [make(model) for model in (alone, fed, sharded)]
        assert build == "EAdamW" or "backend: fused on cpu" in repr(optimizers[2])
        for k in range(STEPS):
            ids = torch.randint(0, SHAPE["vocab_size"], (8, 6), generator=torch.Generator().manual_seed(k))
            backward(alone, ids)
            backward(sharded, ids.chunk(shares)[rank * shares // ranks])
            if k == BAD_STEP and build != "Lamb":
                poison(alone)
                poison(sharded)
            give_gradients(sharded, fed)
            for optimizer in optimizers[:2]:
                optimizer.step()
            with CommDebugMode() as counted:
                optimizers[2].step()
        assert build != "ALTO" or counted.get_total_counts() == collectives, f"{counted.get_total_counts()} collectives"
        assert [int(optimizer.skipped_steps) for optimizer in optimizers] == [build != "Lamb"] * 3
        found = all_of(sharded, optimizers[2])
        off = gap(found, all_of(fed, optimizers[1]))
        assert off <= (1e-12 if dtype is torch.float64 else 1e-6), f"{build}, by the same gradients: {off}"
        off = max(gap({n: found[n]}, {n: p.detach()}) for n, p in alone.named_parameters())
        assert off <= limit, f"{build}: {off}"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    from transformers import MixtralConfig, MixtralForCausalLM

    folder = str(tmp_path_factory.mktemp("mixtral"))
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SHAPE)).double().save_pretrained(folder)
    return folder


not_gathered = pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 gathers no lone strided shard")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=not_gathered if "_S(1" in s.layouts[EXPERTS] else ()) for n, s in SHARDINGS.items()]
)
def test_steps_are_those_of_one_process(name, mixtral):
    """Twice: by the gradients that ranks have, gathered, and by those that the whole model has itself."""
    call_on_ranks(SHARDINGS[name].ranks, train, mixtral, name)
