"""Config files name ALTO, and the module makes the groups: what docs/frameworks.md says of Hydra and LightningCLI."""

from __future__ import annotations

import lightning
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.cli import LightningCLI, OptimizerCallable

from thalweg import ALTO, param_groups


class Module(lightning.LightningModule):
    def __init__(self, optimizer: OptimizerCallable = ALTO) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))

    def configure_optimizers(self):
        return self.optimizer(param_groups(self, 0.01))


def by_lightning():
    options = ["--model.optimizer=thalweg.ALTO", "--model.optimizer.lr=0.02", "--model.optimizer.alpha=0.5"]
    cli = LightningCLI(Module, args=[*options, "--model.optimizer.beta=0.01", "--trainer.logger=false"], run=False)
    return cli.model.configure_optimizers()


def by_hydra():
    config = {"_target_": "thalweg.ALTO", "_partial_": True, "lr": 0.02, "alpha": 0.5, "beta": 0.01}
    return instantiate(config)(param_groups(Module(), 0.01))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("build", [by_lightning, by_hydra])
def test_the_file_has_the_options_and_the_module_the_groups(build):
    optimizer = build()
    assert type(optimizer) is ALTO
    kinds = [
        (g["lr"], g["alpha"], g["beta"], g["weight_decay"], g["trust_ratio"], len(g["params"]))
        for g in optimizer.param_groups
    ]
    assert kinds == [(0.02, 0.5, 0.01, 0.01, True, 1), (0.02, 0.5, 0.01, 0.0, False, 3)]
