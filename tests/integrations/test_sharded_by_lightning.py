"""Lightning's ModelParallelStrategy: FSDP2, with tensor parallelism too, and the checkpoints that it writes itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import lightning
import pytest
import torch
from gathered import all_of, as_under_torchrun, gap
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from rank_pool import call_on_ranks
from small_runs import batches
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from thalweg import ALTO, EAdamW, param_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
MESHES = {2: (2, 1), 4: (2, 2)}
"""Of so many ranks: those that see different examples, times those that share each layer."""
WITH_E = {"alpha": -0.25, "beta": 0.5}
BUILDS: dict[str, tuple[torch.dtype, Callable[[nn.Module], Optimizer]]] = {
    "ALTO": (torch.float64, lambda m: ALTO(param_groups(m, 0.01), lr=0.05, max_grad_norm=0.5, **WITH_E)),
    "ALTO, 8 bits": (torch.float32, lambda m: ALTO(param_groups(m, 0.01), lr=0.05, state_dtype="8bit", **WITH_E)),
    "EAdamW": (torch.float64, lambda m: EAdamW(m.parameters(), lr=0.01, eps=1e-4, nonfinite="skip", **WITH_E)),
}
BATCHES = 3


class Module(lightning.LightningModule):
    """Two layers, of which the first is large enough for 8 bits on each rank."""

    def __init__(self, build: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        dtype, self.build = BUILDS[build]
        self.layers = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 10)).to(dtype)
        self.share = 0, 1
        self.is_sharded = False

    def configure_model(self) -> None:
        if self.is_sharded:
            return
        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.layers, tensor, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(self.layers, mesh=data)
        self.share, self.is_sharded = (data.get_local_rank(), data.size()), True

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        share, shares = self.share
        x, y = (t.chunk(shares)[share] for t in batch)
        return cross_entropy(self.layers(x.to(self.layers[0].weight.dtype)), y)

    def configure_optimizers(self) -> Optimizer:
        return self.build(self.layers)


def fit(module: Module, ranks: int, epochs: int, one_file: bool, checkpoint: str | None = None) -> lightning.Trainer:
    data, tensor = MESHES[ranks]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=ModelParallelStrategy(data, tensor, save_distributed_checkpoint=not one_file),
        plugins=[TorchElasticEnvironment()],
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(batches(BATCHES), batch_size=None), ckpt_path=checkpoint)
    return trainer


def train(rank: int, build: str, folder: str, one_file: bool) -> dict[str, Tensor]:
    """Two epochs, beside one process; and two halves of them with a checkpoint between. What was saved."""
    alone, module, half, resumed = (Module(build) for _ in range(4))
    optimizer = alone.configure_optimizers()
    for batch in batches(BATCHES) * 2:
        optimizer.zero_grad()
        alone.training_step(batch).backward()
        optimizer.step()
    with as_under_torchrun(rank) as ranks:
        at_once = fit(module, ranks, 2, one_file).optimizers[0]
        halfway = fit(half, ranks, 1, one_file)
        halfway.save_checkpoint(folder)
        saved = all_of(half, halfway.optimizers[0])
        in_halves = fit(resumed, ranks, 2, one_file, folder).optimizers[0]
    assert gap(all_of(resumed, in_halves), all_of(module, at_once)) == 0.0
    assert build == "ALTO, 8 bits" or gap(all_of(module, at_once), all_of(alone, optimizer)) <= 1e-12
    return saved


def go_on(rank: int, build: str, folder: str, one_file: bool) -> dict[str, Tensor]:
    """What another number of ranks reads from a checkpoint."""
    module = Module(build)
    with as_under_torchrun(rank) as ranks:
        optimizer = fit(module, ranks, 1, one_file, folder).optimizers[0]
    return all_of(module, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "others", "one_file"), [(4, 2, False), (2, 4, True)])
@pytest.mark.parametrize("build", BUILDS)
def test_fit_is_that_of_one_process_and_its_checkpoints_are_read_by_others(build, ranks, others, one_file, tmp_path):
    folder = str(tmp_path / "checkpoint")
    saved = call_on_ranks(ranks, train, build, folder, one_file)[0]
    for found in call_on_ranks(others, go_on, build, folder, one_file):
        assert gap(found, saved) == 0.0
