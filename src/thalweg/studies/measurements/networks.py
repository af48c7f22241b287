"""Small networks for several seeds trained at once, their optimizers, and the curvature of each seed by itself.

Weights are stacked along a first axis of seeds, and the loss that is differentiated is the sum over seeds, so that each
trains as if it were alone: of elementwise optimizers that is so by itself, LAMB's norms are taken seed by seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from thalweg import ALTO, E
from thalweg.landscape.eigen import hessian_eigenpairs
from thalweg.landscape.preconditioned import rates
from thalweg.landscape.swing import Swing, equivalent_rates
from thalweg.landscape.vectors import flat
from thalweg.studies.pages.settings import BETA2


class Dense(nn.Module):
    """A fully connected network for each seed, with torch's own initialisation of linear layers.

    Args:
        widths: of input, hidden layers and output.
        seeds: of the initial weights.
        activation: between layers.
        dtype: of the weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        seeds: Sequence[int],
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.seeds, self.activation = list(seeds), activation
        shapes = [shape for pair in pairwise(widths) for shape in (pair, (1, pair[1]))]
        bounds = [width**-0.5 for width in widths[:-1] for _ in range(2)]
        drawn = [
            [
                torch.empty(shape, dtype=dtype).uniform_(-b, b, generator=g)
                for shape, b in zip(shapes, bounds, strict=True)
            ]
            for g in (torch.Generator().manual_seed(seed) for seed in seeds)
        ]
        self.layers = nn.ParameterList([torch.stack(layer) for layer in zip(*drawn, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, (seeds, batch, classes), of inputs (seeds or 1, batch, features)."""
        return forward(list(self.layers), x, self.activation)

    def of(self, at: int) -> list[Tensor]:
        """The weights of one seed, copies, as a network of one seed has them."""
        return [p.detach()[at : at + 1].clone().requires_grad_() for p in self.layers]


def forward(layers: Sequence[Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The network of these weights and biases in turn, each with its axis of seeds."""
    x = x.expand(len(layers[0]), -1, -1)
    *hidden, weight, bias = layers
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = activation(torch.baddbmm(b, x, w))
    return torch.baddbmm(bias, x, weight)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each seed, (seeds,); labels (seeds or 1, batch)."""
    each = F.cross_entropy(outputs.transpose(1, 2), labels.expand(len(outputs), -1), reduction="none")
    return each.mean(1)


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Half the squared distance to the one-hot labels, the mean over the batch, of each seed."""
    targets = F.one_hot(labels, outputs.shape[-1]).to(outputs)
    return (outputs - targets).square().sum(2).mean(1) / 2.0


def optimizer(
    base: str, params: Sequence[Tensor], lr: float, alpha: float, beta: float, *, decayed: bool = True
) -> Optimizer:
    """A base with E in front, of weights and biases stacked over seeds.

    ``gd`` is SGD without momentum; ``momentum`` SGD with momentum .9 whose learning rate is that of an average;
    ``adam`` and ``adamw`` (decay .01) have betas (.9, .999); ``rmsprop`` and ``adagrad`` are at torch's defaults;
    ``lamb`` is :class:`thalweg.ALTO` with betas (.9, .99) and decay 1e-4, which at α = 0 is LAMB; vectors, biases, are
    neither decayed nor adapted by it. ``decayed=False`` is without weight decay.
    """
    decay = {"adamw": 0.01, "lamb": 1e-4}.get(base, 0.0) if decayed else 0.0
    with warnings.catch_warnings():  # settings with a narrow stable range are what is measured
        warnings.simplefilter("ignore", UserWarning)
        if base == "lamb":
            groups = [
                {"params": [p for p in params if is_matrix(p)], "norm_dims": (1, 2), "weight_decay": decay},
                {"params": [p for p in params if not is_matrix(p)], "trust_ratio": False, "weight_decay": 0.0},
            ]
            return ALTO(
                [group for group in groups if group["params"]], lr, betas=(BETA2, 0.99), alpha=alpha, beta=beta,
                nonfinite="propagate",
            )  # fmt: skip
        bases: dict[str, Callable[[], Optimizer]] = {
            "gd": lambda: SGD(params, lr),
            "momentum": lambda: SGD(params, lr * (1.0 - BETA2), momentum=BETA2),
            "rmsprop": lambda: RMSprop(params, lr),
            "adagrad": lambda: Adagrad(params, lr),
            "adam": lambda: Adam(params, lr, betas=(BETA2, 0.999)),
            "adamw": lambda: AdamW(params, lr, betas=(BETA2, 0.999), weight_decay=decay),
        }
        if base not in bases:
            raise ValueError(f"base must be one of {', '.join(bases)}, lamb, got {base!r}")
        made = bases[base]()
        return made if alpha == 0.0 else E(made, alpha=alpha, beta=beta, nonfinite="propagate")


def is_matrix(p: Tensor) -> bool:
    """Whether it stacks matrices, and not vectors such as biases."""
    return p.dim() == 3 and min(p.shape[1:]) > 1


def of_seed(found: Sequence[Tensor], at: int) -> Tensor:
    """One seed's entries of stacked tensors, as one vector."""
    return flat([each[at : at + 1] for each in found])


class TopEigenvalues:
    """The largest eigenvalue of each seed's Hessian, each time from the eigenvector found last.

    Args:
        loss: of stacked weights: the loss of each.
        tolerance: relative, of the eigenvalue.
    """

    def __init__(self, loss: Callable[[Sequence[Tensor]], Tensor], tolerance: float = 1e-3) -> None:
        self.loss, self.tolerance = loss, tolerance
        self.starts: dict[Any, Tensor] = {}

    def __call__(self, params: Sequence[Tensor], at: int, scale: Tensor | None = None, name: str = "") -> float:
        """λ_max of S H S of one seed, S = diag(scale)."""
        own = [p.detach()[at : at + 1].clone().requires_grad_() for p in params]
        found = hessian_eigenpairs(
            lambda: self.loss(own).squeeze(0), own, scale=scale, start=self.starts.get((at, name)),
            tolerance=self.tolerance, errors=False,
        )  # fmt: skip
        self.starts[at, name] = found.vectors[0]
        return float(found.values[0])

    def preconditioned(self, params: Sequence[Tensor], stepped: Optimizer, at: int) -> float:
        """ηλ of one seed: of (ηD)^½ H (ηD)^½, D from the optimizer's state."""
        known = rates(stepped)
        places = {id(p): rate for p, rate in zip(known.params, known.rates, strict=True)}
        scale = of_seed([places[id(p)] for p in params], at).sqrt()
        return self(params, at, scale, "preconditioned")

    def over(self, swing: Swing, params: Sequence[Tensor], at: int) -> float:
        """ηλ of one seed over the steps that were seen last, as :meth:`Swing.sharpness`, in one pass over all."""
        places = {id(p): k for k, p in enumerate(swing.params)}
        order = [places[id(p)] for p in params]
        averaged = equivalent_rates(swing.last, [p.detach() for p in swing.params])
        passed = [torch.cat([step.places[k][at : at + 1] for step in swing.last]) for k in order]
        own = [torch.zeros_like(p[at : at + 1]).requires_grad_() for p in params]
        found = hessian_eigenpairs(
            lambda: self.loss([place + u for place, u in zip(passed, own, strict=True)]).mean(), own,
            scale=of_seed([averaged[k] for k in order], at).sqrt(), start=self.starts.get((at, "swing")),
            tolerance=self.tolerance, errors=False,
        )  # fmt: skip
        self.starts[at, "swing"] = found.vectors[0]
        return float(found.values[0])
