"""Losses whose Hessians are known."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class Quadratic:
    """L(θ) = ½ θᵀAθ + bᵀθ with A of a chosen spectrum in random directions, over parameters of several shapes."""

    def __init__(self, spectrum, shapes, seed=0, linear=0.0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        n = len(spectrum)
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        self.spectrum = torch.tensor(spectrum, dtype=torch.float64)
        self.matrix = (basis * self.spectrum @ basis.T).to(dtype)
        self.linear = linear * torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)
        self.basis = basis.to(dtype)
        self.params = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
        assert sum(p.numel() for p in self.params) == n

    def place(self, vector: Tensor) -> Quadratic:
        torch.nn.utils.vector_to_parameters(vector, self.params)
        return self

    def __call__(self) -> Tensor:
        theta = torch.cat([p.reshape(-1) for p in self.params])
        return 0.5 * theta @ self.matrix @ theta + self.linear @ theta


SHAPES = [(4, 5), (7,), (3, 2, 6), (1,)]  # 64 entries
SPECTRUM = [9.0, 7.5, 7.4, 4.0, *torch.linspace(1.0, -3.0, 60).tolist()]


def quadratic(seed=0, linear=0.0, dtype=torch.float64):
    return Quadratic(SPECTRUM, SHAPES, seed, linear, dtype)


class DeepLinear(nn.Module):
    """x → W_2 W_1 x of width h, with a closed form of its Hessian at a global minimum.

    Loss: ½‖W_2 W_1 - M‖² (whitened inputs). At W_2 W_1 = M the Hessian is JJᵀ of d(W_2 W_1) = dW_2 W_1 + W_2 dW_1; with
    M = diag(s), W_1 = W_2 = diag(√s), the entry (i, j) of the product changes by √s_j dW_2[i,j] + √s_i dW_1[i,j]: the
    nonzero eigenvalues are s_i + s_j for all i and j, the others 0.
    """

    def __init__(self, singular):
        super().__init__()
        s = torch.tensor(singular, dtype=torch.float64)
        self.target = torch.diag(s)
        self.first = nn.Parameter(torch.diag(s.sqrt()))
        self.second = nn.Parameter(torch.diag(s.sqrt()))
        sums = (s[:, None] + s[None, :]).reshape(-1)
        self.spectrum = torch.cat([sums, torch.zeros_like(sums)]).sort(descending=True).values

    def loss(self) -> Tensor:
        return 0.5 * (self.second @ self.first - self.target).square().sum()


def dense_hessian(loss, params):
    """By torch.func, one entry after the other: another way than the package's."""
    sizes = [p.numel() for p in params]
    shapes = [p.shape for p in params]
    saved = [p.detach().clone() for p in params]

    def of_vector(vector):
        pieces = [piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]
        return loss(pieces)

    return torch.func.hessian(of_vector)(torch.cat([s.reshape(-1) for s in saved]))


def small_network(seed=0, widths=(5, 7, 3), examples=40, dtype=torch.float64):
    """A tanh network, its inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, dtype=dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(examples, widths[0], generator=generator, dtype=dtype)
    y = torch.randint(widths[-1], (examples,), generator=generator)
    return model, x, y


def functional_loss(model, x, y):
    """The network's mean loss as a function of a list of parameters."""
    names = [name for name, _ in model.named_parameters()]

    def loss(pieces):
        output = torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,))
        return nn.functional.cross_entropy(output, y)

    return loss
