"""A learning-rate schedule: torch's schedulers drive ALTO as they drive AdamW, here a warm-up, then a cosine."""

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from thalweg import ALTO

torch.manual_seed(0)
x = torch.linspace(-1, 1, 256).unsqueeze(1)
y = torch.sin(3 * x)
model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))

optimizer = ALTO(model.parameters(), lr=0.05, alpha=0.5, beta=0.01)
warmup = LinearLR(optimizer, start_factor=0.1, total_iters=20)
scheduler = SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, T_max=180)], milestones=[20])
rates = []
for _ in range(200):
    optimizer.zero_grad()
    loss = (model(x) - y).square().mean()
    loss.backward()
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()

print(f"schedule: loss {loss.item():.5f}, learning rate {rates[0]:.3f} to {max(rates):.3f} to {rates[-1]:.6f}")
# prints: schedule: loss 0.00036, learning rate 0.005 to 0.050 to 0.000004
