"""Stepping inside backward: of the gradients, only those of one layer exist at a time. The loop stays as it was."""

import torch

from thalweg import ALTO, param_groups, step_in_backward

torch.manual_seed(0)
x = torch.linspace(-1, 1, 256).unsqueeze(1)
y = torch.sin(3 * x)
hidden = [layer for _ in range(8) for layer in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), *hidden, torch.nn.Linear(64, 1))

alive = []  # for each layer, how many gradients there are when its own is ready
for p in model.parameters():
    p.register_post_accumulate_grad_hook(lambda _: alive.append(sum(q.grad is not None for q in model.parameters())))

# Whether a whole step is finite is known only at its end: judge each layer alone, or take nonfinite="propagate".
optimizer = ALTO(param_groups(model), lr=0.02, alpha=0.5, beta=0.01)
step_in_backward(optimizer, nonfinite_by_layer=True)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
for _ in range(100):
    loss = (model(x) - y).square().mean()
    loss.backward()  # moves the layers, from the last to the first, and frees their gradients
    optimizer.step()  # ends the step
    scheduler.step()

print(f"step in backward: loss {loss.item():.5f}, at most {max(alive)} of {len(list(model.parameters()))} gradients")
# prints: step in backward: loss 0.00228, at most 1 of 20 gradients
