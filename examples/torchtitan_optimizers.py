"""torchtitan: its container of optimizers builds ALTO, in groups by patterns of names.

torchtitan knows optimizers by the names of a closed table, which a subclass opens. ``pip install torchtitan`` first.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig

from thalweg import ALTO

logging.disable(logging.WARNING)


class Optimizers(OptimizersContainer):
    """With ALTO among those that it knows."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """What a trainer's configuration has as ``optimizer``, and builds this class from."""

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., torch.optim.Optimizer]:
        return ALTO if name == "ALTO" else OptimizersContainer._resolve_optimizer_factory(name)


options = {"lr": 0.02, "alpha": 0.5, "beta": 0.01}
config = Optimizers.Config(
    implementation="foreach",  # "fused" are kernels of our own: on a CPU in C++, on CUDA in Triton
    param_groups=[
        ParamGroupConfig(
            pattern=r"norm|bias",
            optimizer_name="ALTO",
            optimizer_kwargs={**options, "weight_decay": 0.0, "trust_ratio": False},
        ),
        ParamGroupConfig(pattern=r".*", optimizer_name="ALTO", optimizer_kwargs={**options, "weight_decay": 0.01}),
    ],
)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
model.append(torch.nn.Linear(64, 1))
optimizers = config.build(model_parts=[model])

x = torch.linspace(-1, 1, 256).unsqueeze(1)
for _ in range(200):
    optimizers.zero_grad()
    loss = (model(x) - torch.sin(3 * x)).square().mean()
    loss.backward()
    optimizers.step()

(optimizer,) = optimizers
print(f"torchtitan: loss {loss.item():.5f}, {len(optimizer.param_groups)} groups of {type(optimizer).__name__}")
# prints: torchtitan: loss 0.00232, 2 groups of ALTO
