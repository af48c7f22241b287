"""A schedule for α: explore first, exploit at the end. α is in the group, so it is saved and loaded with the rest."""

import copy

import torch

from thalweg import ALTO, EAdamW

STEPS = 40
x = torch.linspace(-1, 1, 256).unsqueeze(1)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, key: str, steps: range) -> list[float]:
    """Fit sin(3x), α going from -5 to 5; what α was."""
    alphas = []
    for k in steps:
        for group in optimizer.param_groups:
            group[key] = -5.0 + 10.0 * k / (STEPS - 1)  # |α| stays below 1/(1 - β1)
        alphas.append(group[key])
        optimizer.zero_grad()
        (model(x) - torch.sin(3 * x)).square().mean().backward()
        optimizer.step()
    return alphas


for cls, options, key in (
    (ALTO, {"alpha": -5.0, "beta": 0.9}, "alpha"),
    (EAdamW, {"beta": 0.9, "alpha": -5.0}, "explore_alpha"),
):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = cls(model.parameters(), lr=0.01, **options)
    alphas = train(model, optimizer, key, range(STEPS // 2))

    resumed_model = copy.deepcopy(model)  # α and the buffers come back with the state dict
    resumed = cls(resumed_model.parameters())
    resumed.load_state_dict(optimizer.state_dict())
    alphas += train(resumed_model, resumed, key, range(STEPS // 2, STEPS))

print(f"alpha schedule: from {alphas[0]:g} to {alphas[-1]:g}, {alphas[STEPS // 2]:.3f} where it was resumed")
# prints: alpha schedule: from -5 to 5, 0.128 where it was resumed
