"""torchtitan's OptimizersContainer: groups by patterns of names, state made by a step of zeros, and its checkpoints.

torchtitan is no dependency: it pins an older version of datasets than we do. CONTRIBUTING.md has the command.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.distributed.checkpoint as dcp
from gathered import all_of, gap, whole
from rank_pool import call_on_ranks
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard

from thalweg import ALTO, EAdamW

torchtitan = pytest.importorskip("torchtitan.components.optimizer", reason="torchtitan is not installed")

WITH_E = {"alpha": -0.25, "beta": 0.5}
IN_GROUPS_OF_E = {f"explore_{name}": value for name, value in WITH_E.items()}
NAMES = {"ALTO": ALTO, "EAdamW": EAdamW}
LAMB = {"lr": 0.05, "max_grad_norm": 0.5, **WITH_E}
ADAM = {"lr": 0.01, "eps": 1e-4, **IN_GROUPS_OF_E}
# name of the optimizer and its options, of vectors and of the rest
GROUPS = {
    "ALTO": (("ALTO", {**LAMB, "weight_decay": 0.0, "trust_ratio": False}), ("ALTO", {**LAMB, "weight_decay": 0.01})),
    "ALTO, 8 bits": (("ALTO", {**LAMB, "trust_ratio": False}), ("ALTO", {**LAMB, "state_dtype": "8bit"})),
    "EAdamW": (("EAdamW", {**ADAM, "weight_decay": 0.0}), ("EAdamW", {**ADAM, "weight_decay": 0.01})),
    "ALTO and AdamW": (("AdamW", {"lr": 0.01, "eps": 1e-4}), ("ALTO", {"lr": 0.05, **WITH_E})),
}
IMPLEMENTATIONS = {"fused": (4, 2), "foreach": (2, 4), "for-loop": (4, 2)}
"""With the number of ranks, and of those that read their checkpoint."""
STEPS = 3


class Container(torchtitan.OptimizersContainer):
    """With our optimizers among those that it knows by name."""

    @dataclass(kw_only=True, slots=True)
    class Config(torchtitan.OptimizersContainer.Config):
        """As torchtitan insists on."""

    @staticmethod
    def _resolve_optimizer_factory(name):
        return NAMES.get(name) or torchtitan.OptimizersContainer._resolve_optimizer_factory(name)


def model_of(dtype: torch.dtype, *, sharded: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.Tanh(), nn.Linear(256, 10)).to(dtype)
    if sharded:
        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    return model


def container_of(model: nn.Module, groups: str, implementation: str) -> Container:
    patterns = zip((r"^1\.|bias", ".*"), GROUPS[groups], strict=True)
    configs = [torchtitan.ParamGroupConfig(pattern=p, optimizer_name=n, optimizer_kwargs=o) for p, (n, o) in patterns]
    config = Container.Config(implementation=implementation, param_groups=configs)
    return config.build(model_parts=[model])


def train(model: nn.Module, container: Container, steps: range, share: int = 0, shares: int = 1) -> None:
    for k in steps:
        generator = torch.Generator().manual_seed(k)
        x = torch.randn(8, 64, generator=generator, dtype=torch.float64).to(next(model.parameters()).dtype)
        container.zero_grad()
        model(x.chunk(shares)[share]).square().mean().backward()
        container.step()


def everything(model: nn.Module, container: Container) -> dict[str, Tensor]:
    """Parameters and state, of which each is in one optimizer of the container."""
    found = [all_of(model, optimizer) for optimizer in container]
    return {name: x for one in found for name, x in one.items()}


def dtype_of(groups: str) -> torch.dtype:
    return torch.float32 if "8 bits" in groups else torch.float64


def on_ranks(rank: int, groups: str, implementation: str, folder: str) -> dict[str, Tensor]:
    """Beside one process, and beside ranks that go on from a checkpoint; what is in that."""
    dtype, ranks = dtype_of(groups), dist.get_world_size()
    alone, model, resumed = (model_of(dtype, sharded=k > 0) for k in range(3))
    by_one, container, in_halves = (container_of(m, groups, implementation) for m in (alone, model, resumed))
    before = {name: whole(p) for name, p in model.named_parameters()}
    container.state_dict()  # takes a step of zeros
    if groups == "ALTO and AdamW":
        by_one.state_dict()  # AdamW counts it, ours do not
    assert gap({name: whole(p) for name, p in model.named_parameters()}, before) == 0.0
    train(alone, by_one, range(2 * STEPS))
    train(model, container, range(STEPS), rank, ranks)
    saved = everything(model, container)
    state = {"model": model.state_dict(), "optimizer": container.state_dict()}
    dcp.save(state, checkpoint_id=folder)
    train(model, container, range(STEPS, 2 * STEPS), rank, ranks)
    found, expected = everything(model, container), everything(alone, by_one)
    assert groups == "ALTO, 8 bits" or gap(found, expected) <= 1e-12
    read(resumed, in_halves, folder)
    train(resumed, in_halves, range(STEPS, 2 * STEPS), rank, ranks)
    assert gap(everything(resumed, in_halves), found) == 0.0
    return saved


def read(model: nn.Module, container: Container, folder: str) -> None:
    state = {"model": model.state_dict(), "optimizer": container.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    model.load_state_dict(state["model"])
    container.load_state_dict(state["optimizer"])


def on_other_ranks(rank: int, groups: str, implementation: str, folder: str) -> dict[str, Tensor]:
    model = model_of(dtype_of(groups), sharded=True)
    container = container_of(model, groups, implementation)
    read(model, container, folder)
    return everything(model, container)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("groups", GROUPS)
def test_steps_are_those_of_one_process_and_checkpoints_are_read_by_any_number(groups, implementation, tmp_path):
    ranks, others = IMPLEMENTATIONS[implementation]
    saved = call_on_ranks(ranks, on_ranks, groups, implementation, str(tmp_path))[0]
    for found in call_on_ranks(others, on_other_ranks, groups, implementation, str(tmp_path)):
        assert gap(found, saved) == 0.0
