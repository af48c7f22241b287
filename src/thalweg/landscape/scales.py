"""Coordinates in which flatness does not depend on how a network's weights are scaled."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from thalweg.landscape.derivatives import check_params
from thalweg.landscape.vectors import flat


def filter_scale(params: Iterable[Tensor]) -> Tensor:
    """The root mean square of the filter that each entry belongs to, as one vector.

    A filter is what makes one output: p[i] of a matrix or of a convolution's kernel; a vector (a bias) is one filter as
    a whole. As ``scale`` of an estimator it gives the filter-normalised version: perturbations S u with S = diag(scale)
    are relative to the weights, as the directions of Li et al. (arXiv 1712.09913), and a ReLU network whose layers are
    multiplied by c and 1/c has the same S H S. Where a filter is zero nothing is perturbed.

    Args:
        params: the parameters.

    Returns:
        A vector of as many entries as the parameters have.

    >>> import torch
    >>> filter_scale([torch.tensor([[3.0, 4.0], [1.0, 1.0]], requires_grad=True)])
    tensor([3.5355, 3.5355, 1.0000, 1.0000])
    """
    return flat([_of_filters(p.detach()) for p in check_params(params)])


def _of_filters(p: Tensor) -> Tensor:
    rows = p.reshape(p.shape[0], -1) if p.dim() > 1 else p.reshape(1, -1)
    sizes: Tensor = rows.square().mean(dim=1, keepdim=True).sqrt().expand_as(rows)
    return sizes
