"""A checkpoint in one file: weights, optimizer, scheduler, loaded without executing anything; independent copies."""

import copy
import pickle
import tempfile

import torch

from thalweg import EAdamW


def build() -> tuple[torch.nn.Module, EAdamW, torch.optim.lr_scheduler.LRScheduler]:
    """A new model, its optimizer and its scheduler."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = EAdamW(model.parameters(), lr=0.05, alpha=0.5, beta=0.01)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)


def train(parts: tuple, steps: int) -> float:
    """Fit sin(3x); the last loss."""
    model, optimizer, scheduler = parts
    x = torch.linspace(-1, 1, 256).unsqueeze(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - torch.sin(3 * x)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return loss.item()


torch.manual_seed(0)
parts = build()
train(parts, steps=100)
with tempfile.TemporaryFile() as file:
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    loaded = build()
    for part, saved in zip(loaded, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(saved)
copied, pickled = copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))  # together, so that they stay connected

losses = {train(each, steps=100) for each in (parts, loaded, copied, pickled)}
print(f"checkpoint: loss {', '.join(f'{loss:.6f}' for loss in losses)}, whether trained on, loaded, copied or pickled")
# prints: checkpoint: loss 0.008905, whether trained on, loaded, copied or pickled
