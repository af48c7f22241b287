"""At which sharpness training settles, beside the stability limit, on a grid of α and β1.

The limit is :func:`thalweg.theory.stability_limit`. What it is compared with is ηλ, the learning rate times the largest
eigenvalue of the Hessian as the optimizer sees it (:func:`thalweg.landscape.preconditioned_sharpness`): for SGD the
plain one. LAMB's is also taken over its last ten steps, in which Hessian and trust ratios change
(:class:`thalweg.landscape.Swing`). The network and data are those on which the table of ``docs/what-e-does.md`` was
measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab import tasks
from thalweg.landscape import Swing
from thalweg.studies.measurements.networks import Dense, TopEigenvalues, forward, optimizer, squared_error
from thalweg.studies.pages.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

MEASURES = ("eta_lambda", "swing", "sharpness", "loss", "batch")
STEPS = 10
"""Over how many steps LAMB's is taken: the horizon of its momentum."""


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Each base at each (α, β1) of the grid, on all data and on large batches.

    Args:
        options: ``lr`` (a list for each base), ``full`` and ``batch`` (pairs [α, β1]), ``batch_size``, ``steps``,
            ``last`` (the steps over which is averaged), ``every`` (steps between measurements), ``seeds``,
            ``examples``.
    """
    shared = {key: options[key] for key in ("steps", "last", "every", "seeds", "examples")}
    return [
        {"base": base, "batch": size, "alpha": float(alpha), "beta": float(beta), "lr": float(lr), **shared}
        for size, grid in ((options["examples"], options["full"]), (options["batch_size"], options["batch"]))
        for base, lrs in options["lr"].items()
        for lr in lrs
        for alpha, beta in grid
    ]


def measure(settings: Settings) -> dict[str, Any]:
    """What is measured of each seed, a list over the last steps; None where a seed is not finite.

    ``eta_lambda`` is of the optimizer's own coordinates, at one place; ``swing``, of LAMB alone, over the last
    :data:`STEPS` of its steps; ``sharpness`` the plain λ_max; ``batch`` is, with mini-batches and SGD, η times the mean
    over batches of gᵀHg/‖g‖², of each batch's own gradient and Hessian.
    """
    x, labels = _digits(settings["examples"])
    model = Dense((64, 64, 64, 10), range(settings["seeds"]))
    params = list(model.parameters())
    stepped = optimizer(settings["base"], params, settings["lr"], settings["alpha"], settings["beta"])
    tops = TopEigenvalues(lambda own: squared_error(forward(own, x, torch.tanh), labels))
    generator = torch.Generator().manual_seed(1)
    swing = None
    found: dict[str, list[list[float]]] = {name: [] for name in MEASURES}
    steps, size = settings["steps"], settings["batch"]
    whole = size >= settings["examples"]
    for step in range(1, steps + 1):
        if settings["base"] == "lamb" and swing is None and step > steps - settings["last"] + settings["every"] - STEPS:
            swing = Swing(stepped, STEPS)
        at = slice(None) if whole else torch.randperm(len(labels), generator=generator)[:size]
        losses = squared_error(model(x[at]), labels[at])
        stepped.zero_grad()
        torch.autograd.backward(losses.sum())
        stepped.step()
        if not losses.isfinite().any():
            break
        if step > steps - settings["last"] and step % settings["every"] == 0:
            here = [
                _measure(settings, tops, params, stepped, swing, i, (x, labels), generator)
                for i in range(len(model.seeds))
            ]
            for name, values in found.items():
                values.append([one[name] for one in here])
    return {
        name: [[value if math.isfinite(value) else None for value in column] for column in zip(*values, strict=True)]
        or [[] for _ in model.seeds]
        for name, values in found.items()
    }


def _measure(
    settings: Settings, tops: TopEigenvalues, params: Sequence[Tensor], stepped: torch.optim.Optimizer,
    swing: Swing | None, i: int, data: tuple[Tensor, Tensor], generator: torch.Generator,
) -> dict[str, float]:  # fmt: skip
    if not all(p[i].isfinite().all() for p in params):
        return dict.fromkeys(MEASURES, math.nan)
    with torch.no_grad():
        loss = float(tops.loss([p[i : i + 1] for p in params]))
    plain = settings["base"] in ("gd", "momentum")
    sharpness = tops(params, i)
    seen = settings["lr"] * sharpness if plain else tops.preconditioned(params, stepped, i)
    batch = math.nan
    if plain and settings["batch"] < settings["examples"]:
        batch = settings["lr"] * _batch_sharpness(params, i, data, settings["batch"], generator)
    over = tops.over(swing, params, i) if swing else math.nan
    return {"eta_lambda": seen, "swing": over, "sharpness": sharpness, "loss": loss, "batch": batch}


def _batch_sharpness(
    params: Sequence[Tensor], i: int, data: tuple[Tensor, Tensor], size: int, generator: torch.Generator, draws: int = 8
) -> float:
    """The mean of gᵀHg/‖g‖² over some batches, drawn as in training."""
    own = [p.detach()[i : i + 1].clone().requires_grad_() for p in params]
    found = []
    for _ in range(draws):
        at = torch.randperm(len(data[1]), generator=generator)[:size]
        loss = squared_error(forward(own, data[0][at], torch.tanh), data[1][at]).sum()
        g = torch.autograd.grad(loss, own, create_graph=True)
        image = torch.autograd.grad(g, own, [each.detach() for each in g])
        square = sum(float(each.detach().square().sum()) for each in g)
        found.append(sum(float((a.detach() * b).sum()) for a, b in zip(g, image, strict=True)) / square)
    return sum(found) / len(found)


def _digits(examples: int) -> tuple[Tensor, Tensor]:
    data = tasks.load("digits")[1].train
    return data.inputs[:examples].flatten(1) / 2.0, data.targets[:examples]
