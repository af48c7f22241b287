"""Sharpness on the way down, below the edge of stability and at it: what orders it, S or the stability limit?

Full batches at a constant learning rate; where the training loss first falls to each of some levels, the largest
eigenvalue of the Hessian and the squared gradient norm are measured. Where sharpness settles in the end is measured by
:mod:`~thalweg.studies.measurements.edge`.
"""

from __future__ import annotations

from typing import Any

import torch

from thalweg.studies.measurements.networks import TopEigenvalues, optimizer
from thalweg.studies.measurements.problems import images
from thalweg.studies.pages.settings import Settings

MEASURES = ("steps", "sharpness", "gradient")


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Each (α, β1) of each grid.

    Args:
        options: ``grids`` (tables of a ``base``, a learning rate ``lr``, and ``settings``, pairs [α, β1]), ``task``,
            ``examples``, ``width`` (of the hidden layer), ``levels`` (training losses, falling), ``steps`` (at most),
            ``seeds``.
    """
    shared = {key: options[key] for key in ("task", "examples", "width", "levels", "steps", "seeds")}
    return [
        {"base": grid["base"], "lr": float(grid["lr"]), "alpha": float(alpha), "beta": float(beta), **shared}
        for grid in options["grids"]
        for alpha, beta in grid["settings"]
    ]


def measure(settings: Settings) -> dict[str, Any]:
    """The :data:`MEASURES` at each level, of each seed; None where the level was not reached."""
    levels, seeds = settings["levels"], range(settings["seeds"])
    problem = images(settings["task"], seeds, settings["examples"], settings["width"], torch.tanh)
    params, tops = problem.params, TopEigenvalues(problem.sample)
    stepped = optimizer(settings["base"], params, settings["lr"], settings["alpha"], settings["beta"])
    found: dict[str, list[list[float | None]]] = {name: [[None] * len(seeds) for _ in levels] for name in MEASURES}
    for step in range(settings["steps"] + 1):
        losses = problem.sample(params)
        stepped.zero_grad()
        torch.autograd.backward(losses.sum())
        for i, loss in enumerate(losses.tolist()):
            reached = [at for at, level in enumerate(levels) if loss <= level and found["steps"][at][i] is None]
            if reached:
                square = sum(float(p.grad[i].double().square().sum()) for p in params if p.grad is not None)
                for name, value in zip(MEASURES, (step, tops(params, i), square), strict=True):
                    for at in reached:
                        found[name][at][i] = value
        if None not in found["steps"][-1]:
            break
        stepped.step()
    return found
