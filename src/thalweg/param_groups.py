"""Which parameters are decayed and adapted, and whether an optimizer has them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from thalweg.hyperparameters import check_nonnegative, reject

NORMALISATION: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.CrossMapLRN2d,
)


def param_groups(
    model: nn.Module,
    weight_decay: float = 0.01,
    *,
    patterns: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for :class:`thalweg.ALTO` and :class:`thalweg.Lamb`.

    Weights are decayed and their layers adapted by the trust ratio. Biases and normalisation parameters are neither:
    all parameters of torch's normalisation modules, whatever their shape, and all layers of at most one dimension,
    which takes in biases and the gains of home-made normalisation layers. Names play no part, except in ``patterns``.
    A tied parameter appears once; a frozen one keeps its place, so that it may be thawed later.

    Args:
        model: the model to train.
        weight_decay: λ of the weights.
        patterns: options by shell-style pattern of the parameter's name; the first that matches wins, and its options
            override the above. ``"stacked": n`` says that the first n axes stack layers (experts, scanned layers):
            norms are then taken, and vectors told from matrices, within a layer.

    Returns:
        Groups with ``params``, ``weight_decay``, ``trust_ratio`` and the options of ``patterns``, weights first.

    Raises:
        ValueError: ``weight_decay`` is negative, a pattern matches no parameter, ``stacked`` is not a number of axes
            that every matching parameter has, or the model has no parameters.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> [(len(g["params"]), g["weight_decay"], g["trust_ratio"]) for g in param_groups(model, 0.1)]
    [(1, 0.1, True), (3, 0.0, False)]
    >>> model.experts = nn.Parameter(model[0].weight.new_ones(8, 4, 2))
    >>> param_groups(model, 0.1, patterns={"experts": {"stacked": 1}})[0]["norm_dims"]
    (-2, -1)
    """
    check_nonnegative("weight_decay", weight_decay)
    patterns = patterns or {}
    unused = set(patterns)
    plain = {id(p) for m in model.modules() if isinstance(m, NORMALISATION) for p in m.parameters(recurse=False)}
    groups: list[dict[str, Any]] = []
    for name, p in model.named_parameters():
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        unused.discard(pattern or "")
        options = dict(patterns[pattern]) if pattern is not None else {}
        dims = p.ndim
        if (stacked := options.pop("stacked", None)) is not None:
            if not isinstance(stacked, int) or isinstance(stacked, bool) or not 0 <= stacked < p.ndim:
                reject(f"stacked of {pattern!r}", stacked, f"an integer in [0, {p.ndim}) for {name} of {p.ndim} axes")
            dims = p.ndim - stacked
            options.setdefault("norm_dims", tuple(range(-dims, 0)))
        adapted = id(p) not in plain and dims > 1
        options = {"weight_decay": weight_decay if adapted else 0.0, "trust_ratio": adapted, **options}
        for group in groups:
            if {key: value for key, value in group.items() if key != "params"} == options:
                group["params"].append(p)
                break
        else:
            groups.append({"params": [p], **options})
    if unused:
        reject("patterns", sorted(unused), f"patterns that match a parameter of {type(model).__name__}")
    if not groups:
        raise ValueError("model must have at least one parameter, got none")
    return sorted(groups, key=lambda group: not group["trust_ratio"])


def check_coverage(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that an optimizer has every parameter of a model that requires grad, once, and no others.

    Args:
        model: the model to train.
        optimizer: any torch optimizer.

    Raises:
        ValueError: parameters are left out, doubled, or not the model's (it was wrapped after the optimizer was built,
            perhaps); the message names them.

    >>> model = nn.Linear(2, 1)
    >>> check_coverage(model, Optimizer([model.weight], {}))
    Traceback (most recent call last):
    ValueError: optimizer must have every trainable parameter of the model once; left out: bias
    """
    names = {id(p): name for name, p in model.named_parameters()}
    held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    shapes = {id(p): tuple(p.shape) for group in optimizer.param_groups for p in group["params"]}
    faults = {
        "left out": [names[id(p)] for p in model.parameters() if p.requires_grad and id(p) not in held],
        "doubled": [names.get(i, f"one of shape {shapes[i]}") for i, count in held.items() if count > 1],
        "not the model's": [f"one of shape {shapes[i]}" for i in held if i not in names],
    }
    told = "; ".join(f"{fault}: {', '.join(which)}" for fault, which in faults.items() if which)
    if told:
        raise ValueError(f"optimizer must have every trainable parameter of the model once; {told}")
