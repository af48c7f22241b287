"""The loss around what Adam finds on a noisy sine, at a small and at the full batch, at the same training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab import tasks
from thalweg.landscape import (
    FixedSample,
    hessian_eigenpairs,
    hessian_trace,
    mean_increase,
    squared_gradient_norm,
)
from thalweg.landscape.scales import filter_scale
from thalweg.landscape.slices import filter_normalised_directions, slice_2d
from thalweg.studies.measurements.convergence import batches
from thalweg.studies.measurements.networks import Dense, optimizer
from thalweg.studies.pages.settings import Settings
from thalweg.studies.pages.sine import MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

TASK, WIDTHS = "sine-noisy", (1, 32, 32, 1)
SAMPLE = 4096  # training points on which loss and flatness are measured


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Adam at each batch size, with each E in front.

    Args:
        options: ``batches`` (of each its size, learning rate and most steps), ``settings`` (pairs [α, β1]), ``target``,
            ``seeds``, ``points`` and ``extent`` of each axis of the surface.
    """
    shared = {key: options[key] for key in ("target", "seeds", "points", "extent")}
    return [
        {"batch": int(size), "alpha": float(alpha), "beta": float(beta), "lr": float(lr), "steps": steps, **shared}
        for size, lr, steps in options["batches"] for alpha, beta in options["settings"]
    ]  # fmt: skip


def measure(settings: Settings) -> dict[str, Any]:
    """Of each seed the :data:`MEASURES` where the training loss first is at the target; of the first the surface.

    The loss is that of 4,096 training points; ``sharpness`` is the largest eigenvalue of its Hessian, ``normalised``
    the same with filters in units of their own size, ``increase`` the mean rise under perturbations of a tenth of that.
    """
    data = tasks.load(TASK)[1]
    x, y = data.train.inputs, data.train.targets
    seeds = list(range(settings["seeds"]))
    model = Dense(WIDTHS, seeds)
    params = list(model.parameters())
    stepped = optimizer("adam", params, settings["lr"], settings["alpha"], settings["beta"])
    found: list[dict[str, Any]] = [{} for _ in seeds]
    whole = settings["batch"] >= len(x)
    every = 5 if whole else 20
    for step, at in enumerate(batches(len(x), min(settings["batch"], len(x)), seeds, settings["steps"]), 1):
        inputs, targets = (x[None], y[None]) if whole else (x[at], y[at])
        stepped.zero_grad()
        torch.autograd.backward((model(inputs) - targets).square().mean((1, 2)).sum())
        stepped.step()
        if step % every:
            continue
        with torch.no_grad():
            losses = (model(x[None, :SAMPLE]) - y[:SAMPLE]).square().mean((1, 2)).tolist()
        for i, loss in enumerate(losses):
            if not found[i] and loss <= settings["target"]:
                found[i] = {"steps": step, "loss": loss, **_around(model.of(i), settings, surface=i == 0)}
        if all(found):
            break
    surface = next((one.pop("surface") for one in found if "surface" in one), None)
    return {"surface": surface, **{name: [one.get(name) for one in found] for name in MEASURES}}


def _around(layers: Sequence[Tensor], settings: Settings, *, surface: bool) -> dict[str, Any]:
    task, data = tasks.load(TASK)
    model = network(layers)
    params = list(model.parameters())
    sample = FixedSample(model, task.loss, [(data.train.inputs[:SAMPLE], data.train.targets[:SAMPLE])])
    scale = filter_scale(params)
    found: dict[str, Any] = {
        "test": float(FixedSample(model, task.loss, [(data.test.inputs, data.test.targets)])().detach()),
        "sharpness": float(hessian_eigenpairs(sample, params, errors=False).values[0]),
        "normalised": float(hessian_eigenpairs(sample, params, scale=scale, errors=False).values[0]),
        "trace": hessian_trace(sample, params, 30).value,
        "increase": mean_increase(sample, params, 0.1, scale=scale, pairs=8).value,
        "gradient": squared_gradient_norm(sample, params),
    }
    if surface:
        directions = filter_normalised_directions(params, 2)
        part = FixedSample(model, task.loss, [(data.train.inputs[:1024], data.train.targets[:1024])])
        losses = slice_2d(
            part, params, directions, torch.linspace(-1.0, 1.0, settings["points"]) * settings["extent"]
        ).losses
        found["surface"] = [[float(f"{value:.5g}") for value in row] for row in losses.tolist()]
    return found


def network(layers: Sequence[Tensor]) -> nn.Module:
    """The task's model with these weights and biases of one seed, (1, in, out) and (1, 1, out) in turn."""
    model = tasks.load(TASK)[0].model()
    with torch.no_grad():
        for p, own in zip(model.parameters(), layers, strict=True):
            p.copy_(own[0].T if p.dim() == 2 else own[0, 0])
    return model
