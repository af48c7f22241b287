"""Curvature by layer: the diagonal blocks of the Hessian."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from thalweg.arguments import check_integer, reject
from thalweg.evaluation import undisturbed
from thalweg.landscape.derivatives import Curvature
from thalweg.landscape.eigen import largest
from thalweg.landscape.estimates import Estimate
from thalweg.landscape.samples import Loss
from thalweg.landscape.trace import trace_of


@dataclass(frozen=True, slots=True)
class LayerCurvature:
    """A diagonal block of the Hessian.

    Attributes:
        entries: how many parameter entries it has.
        top: its largest eigenvalue. That of the whole Hessian is at least the largest of all blocks'.
        trace: its trace; those of all blocks sum to that of the Hessian.
    """

    entries: int
    top: float
    trace: Estimate


@undisturbed()
def curvature_by_layer(
    loss: Loss,
    blocks: nn.Module | Mapping[str, Iterable[Tensor]],
    *,
    products: int = 30,
    tolerance: float | None = None,
    seed: int = 0,
) -> dict[str, LayerCurvature]:
    """The largest eigenvalue and the trace of each block of the Hessian.

    Args:
        loss: a closure or a :class:`~thalweg.landscape.FixedSample`.
        blocks: the parameters of each block by its name; or a model: each module's own parameters are a block.
        products: with the Hessian, for each trace, at least 6.
        tolerance: of the eigenvalues, as of :func:`~thalweg.landscape.hessian_eigenpairs`.
        seed: of the random vectors.

    Raises:
        ValueError: an argument outside its range.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1)
    >>> x = torch.ones(1, 1)
    >>> found = curvature_by_layer(lambda: model(x).square().sum(), {"weight": [model.weight], "bias": [model.bias]})
    >>> {name: one.top for name, one in found.items()}
    {'weight': 2.0, 'bias': 2.0}
    """
    products = check_integer("products", products, 6)
    if isinstance(blocks, nn.Module):
        blocks = by_module(blocks)
    if not blocks:
        reject("blocks", blocks, "a model with parameters that require grad, or a mapping of names to parameters")
    found = {}
    for name, params in blocks.items():
        curvature = Curvature(loss, params)
        values, _, _ = largest(curvature.times, curvature.like, tolerance=tolerance)
        found[name] = LayerCurvature(curvature.size, values.item(), trace_of(curvature, products, seed))
    return found


def by_module(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters that each module has itself, and that require grad, by its name; tied ones count once."""
    seen: set[Tensor] = set()
    found: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        own: list[Tensor] = [p for p in module.parameters(recurse=False) if p.requires_grad and p not in seen]
        if own:
            found[name or type(model).__name__] = own
            seen.update(own)
    return found
