"""Which parameters of a model are matrices to Muon and its successors, and their polar factors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import thalweg

JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of the quintic iteration of Muon, as in torch's."""
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Those of Polar Express (arXiv 2505.16932), five steps for inputs that are scaled by 1.02 times their norm."""


class Layers(NamedTuple):
    """The hidden layers of a model: matrices, convolutions, and stacks of matrices such as experts."""

    matrices: list[nn.Parameter]
    convolutions: list[nn.Parameter]
    stacks: list[nn.Parameter]

    def groups(self) -> list[dict[str, Any]]:
        """A group for each kind there is; ``flatten`` says that all but the first axis are one."""
        kinds = ((self.matrices, False), (self.convolutions, True), (self.stacks, False))
        return [{"params": params, "flatten": flatten} for params, flatten in kinds if params]


def hidden_layers(model: nn.Module) -> Layers:
    """All parameters of two axes or more but embeddings and the output layer."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    excluded = {id(p) for p in (*embeddings, *heads)}
    filters = {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    hidden = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in excluded]
    return Layers(
        [p for p in hidden if p.ndim == 2],
        [p for p in hidden if id(p) in filters],
        [p for p in hidden if p.ndim > 2 and id(p) not in filters],
    )


def rest_of(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of the other parameters, decayed and not."""
    chosen = {id(p) for params in hidden_layers(model) for p in params}
    groups = [
        {"params": [p for p in group["params"] if id(p) not in chosen], "weight_decay": group["weight_decay"]}
        for group in thalweg.param_groups(model, weight_decay)
    ]
    return [group for group in groups if group["params"]]


def lacks_hidden_layers(model: nn.Module) -> str | None:
    """Why Muon does not apply to a model, or None."""
    return None if any(hidden_layers(model)) else "the model has no hidden matrix"


def polar_factor(
    x: Tensor, coefficients: tuple[tuple[float, float, float], ...], *, scale: float = 1.0, eps: float = 1e-7
) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ in the last two axes, by x ← a x + (b A + c A²) x with A = x xᵀ, in bfloat16.

    Args:
        x: matrices, whatever their size: they are divided by ``scale`` times their norms first.
        coefficients: a, b, c of each step.
        scale: at least 1.
        eps: the least norm.
    """
    tall = x.shape[-2] > x.shape[-1]
    found = (x.mT if tall else x).bfloat16()
    shape = found.shape
    found = found.reshape(-1, *shape[-2:])
    found = found / (torch.stack([one.norm() for one in found]) * scale).clamp(min=eps)[:, None, None]
    for a, b, c in coefficients:
        gram = found @ found.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, gram, found, beta=a)
    found = found.reshape(shape)
    return found.mT if tall else found
