"""The loss around what Adam finds on a noisy sine, at a small and at the full batch, at the same training loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thalweg.experiments import drawing
from thalweg.experiments.convergence import batches
from thalweg.experiments.drawing import setting
from thalweg.experiments.networks import Dense, optimizer
from thalweg.experiments.numbers import over, ratios
from thalweg.experiments.work import Record, Settings, carry_out, finished
from thalweg.lab import tasks
from thalweg.lab.recipes.page import Grid, Picture, Section
from thalweg.landscape import (
    FixedSample,
    hessian_eigenpairs,
    hessian_trace,
    mean_increase,
    squared_gradient_norm,
)
from thalweg.landscape.scales import filter_scale
from thalweg.landscape.slices import filter_normalised_directions, slice_2d

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

TASK, WIDTHS = "sine-noisy", (1, 32, 32, 1)
SAMPLE = 4096  # training points on which loss and flatness are measured
MEASURES = ("steps", "loss", "test", "sharpness", "normalised", "trace", "increase", "gradient")


def run(options: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Train Adam to one loss at each batch size, with each E in front, and look around.

    Args:
        options: ``batches`` (of each its size, learning rate and most steps), ``settings`` (pairs [α, β1]), ``target``,
            ``seeds``, ``points`` and ``extent`` of each axis of the surface, and ``jobs``.
        folder: where the records go.
        say: told of progress.
    """
    shared = {key: options[key] for key in ("target", "seeds", "points", "extent")}
    wanted: list[Settings] = [
        {"batch": int(size), "alpha": float(alpha), "beta": float(beta), "lr": float(lr), "steps": steps, **shared}
        for size, lr, steps in options["batches"] for alpha, beta in options["settings"]
    ]  # fmt: skip
    carry_out(wanted, solve, folder, say, jobs=options.get("jobs"))


def solve(settings: Settings) -> dict[str, Any]:
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


def page(folder: Path) -> Section:
    """Steps and flatness of each batch size and setting; the surfaces side by side."""
    done = finished(folder)
    pictures = (_picture(done, folder / "surface.png"),) if any(one.found["surface"] for one in done) else ()
    return Section("", findings=tuple(_findings(done)), grids=(_grid(done),), pictures=pictures)


def _grid(done: list[Record]) -> Grid:
    head = (
        "batch; α, β1", "η", "steps", "training loss", "test loss", "λ_max", "λ_max, filters normalised", "trace",
        "rise at 10 %", "‖∇L‖²",
    )  # fmt: skip
    rows = [
        (
            f"{one.settings['batch']}; {setting(one.settings['alpha'], one.settings['beta'])}",
            f"{one.settings['lr']:g}", over(one.found["steps"]), over(one.found["loss"], 4), over(one.found["test"]),
            *(over(one.found[name]) for name in MEASURES[3:]),
        )
        for one in done
    ]  # fmt: skip
    return Grid(
        f"Adam, mean and half-width of the 95 % interval over {done[0].settings['seeds']} seeds, where the training "
        "loss "
        f"first is at {done[0].settings['target']:g}",
        head,
        tuple(rows),
    )


def _findings(done: list[Record]) -> list[str]:
    said = []
    sizes = sorted({one.settings["batch"] for one in done})
    alone = {one.settings["batch"]: one for one in done if one.settings["alpha"] == 0.0}
    names = {"sharpness": "λ_max", "normalised": "λ_max with filters normalised", "trace": "the trace"}
    if len(sizes) > 1:
        low, high = alone[sizes[0]], alone[sizes[-1]]
        text = []
        for name, words in names.items():
            between = ratios(high.found[name], low.found[name])
            text.append(f"{words} {'unknown' if between is None else between}")
        said.append(
            f"**Batch {sizes[-1]} against batch {sizes[0]}, Adam alone, at the same training loss**, the ratio over "
            f"seeds with its 95 % interval: {'; '.join(text)}. Above 1 is sharper at the large batch, as the slides' "
            "picture says."
        )
    for one in done:
        if one.settings["alpha"] == 0.0:
            continue
        base = alone[one.settings["batch"]]
        text = [f"{words} {ratios(one.found[name], base.found[name])}" for name, words in names.items()]
        said.append(
            f"**Batch {one.settings['batch']}, α, β1 = {setting(one.settings['alpha'], one.settings['beta'])} against "
            f"Adam alone**: {'; '.join(text)}; steps {ratios(one.found['steps'], base.found['steps'])}."
        )
    return said


def _picture(done: list[Record], path: Path) -> Picture:
    shown = [one for one in done if one.found["surface"]]
    sizes = sorted({one.settings["batch"] for one in shown})
    columns = list(dict.fromkeys((one.settings["alpha"], one.settings["beta"]) for one in shown))
    drawn = drawing.figure(3.3 * len(columns) + 0.8, 3.0 * len(sizes))
    panels = drawn.subplots(len(sizes), len(columns), squeeze=False, sharex=True, sharey=True)
    surfaces = [np.array(one.found["surface"]) for one in shown]
    levels = np.geomspace(min(each.min() for each in surfaces), 1.0, 13)
    for one, losses in zip(shown, surfaces, strict=True):
        where = (one.settings["alpha"], one.settings["beta"])
        ax = panels[sizes.index(one.settings["batch"])][columns.index(where)]
        x = np.linspace(-1.0, 1.0, len(losses)) * one.settings["extent"]
        image = ax.contourf(x, x, losses.T, levels=levels, cmap="cividis", norm="log", extend="max")
        inside = ax.contour(x, x, losses.T, levels=[0.1], colors="white", linewidths=1.2)
        ax.clabel(inside, fmt="%g", fontsize=7)
        ax.plot(0, 0, "+", color=drawing.ORANGE, markersize=8)
        ax.set_title(f"batch {one.settings['batch']}, {setting(*where)}", fontsize=10)
    bar = drawn.colorbar(image, ax=panels, label="training loss", format="%.2g")
    bar.ax.minorticks_off()
    drawn.supxlabel("first random direction, filters normalised", fontsize=9)
    drawn.supylabel("second random direction", fontsize=9)
    return Picture(
        drawing.save(drawn, path),
        "The loss around what Adam finds (the cross) on two random directions with filters normalised, first seed; "
        "rows are batch sizes, columns E in front. A wider dark basin is a flatter place: compare the white line, "
        "where the loss "
        "is 0.1.",
    )
