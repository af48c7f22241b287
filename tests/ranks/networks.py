"""Small modules that tests spread over ranks."""

from __future__ import annotations

import torch
from torch import nn


class Experts(nn.Module):
    """Three maps of one width in one parameter, each with a norm of its own in ALTO."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(3, width, width) * torch.tensor([1.0, 10.0, 0.1])[:, None, None])

    def forward(self, x):
        return torch.einsum("bi,eio->bo", x, self.stacked)


class Network(nn.Module):
    """Layers to be cut by columns and by rows, one of one row, a norm, experts, and a layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.experts, self.narrow, self.out = Experts(8), nn.Linear(8, 5), nn.Linear(5, 1)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, x):
        hidden = self.norm(self.down(self.up(x).tanh()))
        return self.frozen(self.out(self.narrow(self.experts(hidden)).tanh()))
