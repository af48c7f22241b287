"""Which parameters are decayed and adapted."""

from __future__ import annotations

from typing import Any

from torch import nn

from thalweg.hyperparameters import check_nonnegative

NORMALISATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.CrossMapLRN2d,
)


def param_groups(model: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two parameter groups for :class:`thalweg.ALTO` and :class:`thalweg.Lamb`.

    Weights are decayed and their layers adapted by the trust ratio. Biases and normalisation parameters are neither:
    all parameters of torch's normalisation modules, whatever their shape, and all parameters of at most one dimension,
    which takes in biases and the gains of home-made normalisation layers. Names play no part. A tied parameter
    appears once; a frozen one keeps its place, so that it may be thawed later.

    Args:
        model: the model to train.
        weight_decay: λ of the first group.

    Returns:
        Groups with ``params``, ``weight_decay`` and ``trust_ratio``; an empty group is left out.

    Raises:
        ValueError: ``weight_decay`` is negative, or the model has no parameters.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [(len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in param_groups(model, 0.1)]
    [(1, 0.1, True), (3, 0.0, False)]
    """
    check_nonnegative("weight_decay", weight_decay)
    plain = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMALISATION)
        for p in module.parameters(recurse=False)
    }
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for p in model.parameters():
        (others if id(p) in plain or p.ndim <= 1 else weights).append(p)
    if not weights and not others:
        raise ValueError("model must have at least one parameter, got none")
    groups = (
        {"params": weights, "weight_decay": weight_decay, "trust_ratio": True},
        {"params": others, "weight_decay": 0.0, "trust_ratio": False},
    )
    return [group for group in groups if group["params"]]
