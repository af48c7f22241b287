"""A CUDA graph of a training step: with ``capturable=True`` nothing waits for the device. On CPU, the step itself."""

import torch

from thalweg import ALTO

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
x = torch.linspace(-1, 1, 256, device=device).unsqueeze(1)
y = torch.sin(3 * x)
model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).to(device)
lr = torch.tensor(0.05, device=device)  # a tensor, so that the graph sees it change
optimizer = ALTO(model.parameters(), lr=lr, alpha=0.5, beta=0.01, capturable=True)

loss = torch.zeros((), device=device)


def step() -> None:
    """Forward, backward and update, all on the device."""
    optimizer.zero_grad(set_to_none=False)  # the graph writes to the same gradients each time
    error = (model(x) - y).square().mean()
    error.backward()
    optimizer.step()
    loss.copy_(error.detach())


replay = step
if device == "cuda":
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # state and gradients are allocated before the capture
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay = graph.replay
for k in range(200):
    lr.fill_(0.05 * (1 - k / 200))
    replay()
print(f"captured step on {device}: loss {loss.item():.5f} after {k + 1} steps, {int(optimizer.skipped_steps)} skipped")
# prints: captured step on cpu: loss 0.00026 after 200 steps, 0 skipped
