"""torch.distributed.checkpoint: save model and optimizer to a folder, and load them into new ones.

The same lines work in one process and with FSDP2 in many, where every rank saves its own part.
"""

import tempfile

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from thalweg import ALTO


def build() -> tuple[torch.nn.Module, ALTO]:
    """A new model and its optimizer."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    return model, ALTO(model.parameters(), lr=0.02, alpha=-5.0, beta=0.99)


def train(model: torch.nn.Module, optimizer: ALTO, steps: int) -> float:
    """Fit sin(3x); the last loss."""
    x = torch.linspace(-1, 1, 256).unsqueeze(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - torch.sin(3 * x)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


torch.manual_seed(0)
model, optimizer = build()
train(model, optimizer, steps=100)
with tempfile.TemporaryDirectory() as folder:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder, no_dist=True)

    resumed_model, resumed = build()
    model_state, optimizer_state = get_state_dict(resumed_model, resumed)  # what to fill
    dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder, no_dist=True)
    set_state_dict(resumed_model, resumed, model_state_dict=model_state, optim_state_dict=optimizer_state)

loss, resumed_loss = train(model, optimizer, steps=100), train(resumed_model, resumed, steps=100)
print(f"distributed checkpoint: loss {loss:.6f}, {resumed_loss:.6f} resumed")
# prints: distributed checkpoint: loss 0.001331, 0.001331 resumed
