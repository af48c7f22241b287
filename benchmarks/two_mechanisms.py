"""Sharpness at the edge of stability, and below it: E(SGD) on full batches, each setting over five seeds.

    python benchmarks/two_mechanisms.py --machine epyc-9005-2-cores

"limits": a tanh network 64-64-64-10 on 600 of scikit-learn's digits, squared error, 3,000 steps at a constant learning
rate; the sharpness, the largest eigenvalue of the Hessian by power iteration, is the mean over the last 1,000 steps,
beside the stability limit over the learning rate. "levels": a tanh network with 64 hidden units on 1,000 images,
cross-entropy; sharpness and squared gradient norm where the training loss first falls to three levels, at a learning
rate below the edge of stability, at one at the edge, and below it with momentum; and by how many per cent each differs
from no E at the same seed. Learning rates are those of momentum
as an average. Without Fashion-MNIST the images are scikit-learn's digits. Ten minutes on one core; complete cells in
the record are not run again: interrupt, and give the same command to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from small_images import Images, load
from stacked import Networks, Sharpness, interval
from torch.nn import functional as F

from thalweg import ESGD
from thalweg.bench.environment import environment
from thalweg.theory import implicit_regularization, stability_limit

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = (0.5, 0.3, 0.15)
STEPS, LAST, EVERY = 3000, 1000, 50


class Cell(NamedTuple):
    """An experiment, η, and E in front of a momentum."""

    experiment: str
    eta: float
    momentum: float
    alpha: float
    beta: float

    @property
    def key(self) -> str:
        """In the record."""
        return "/".join(f"{value:g}" if isinstance(value, float) else value for value in self)


LIMITS = {
    (0.2, 0.0): ((0, 0), (0.5, 0.01), (1, 0.5), (5, 0.9), (-5, 0.99), (-0.6, 0.5), (-3, 0.9)),
    (1.0, 0.9): ((0, 0), (0.5, 0.01), (3, 0.75), (-5, 0.99), (-0.4, 0.5), (-1.2, 0.75)),
}
WITHOUT_MOMENTUM = ((4, 0.9), (0.5, 0), (0, 0), (-1, 0.5), (-5, 0.9), (-8, 0.9), (-40, 0.99))
LEVELS_AT = {
    (0.1, 0.0): WITHOUT_MOMENTUM,
    (0.8, 0.0): WITHOUT_MOMENTUM,
    (0.1, 0.9): ((9.5, 0.95), (5, 0.9), (0, 0), (-5, 0.99), (-40, 0.99)),
}
CELLS = [
    Cell(name, eta, momentum, float(alpha), float(beta))
    for name, grid in (("limits", LIMITS), ("levels", LEVELS_AT))
    for (eta, momentum), settings in grid.items()
    for alpha, beta in settings
]


def optimizer_of(cell: Cell, model: Networks) -> ESGD:
    """torch's momentum is a sum."""
    lr = cell.eta * (1.0 - cell.momentum)
    return ESGD(model.parameters(), lr, cell.momentum, alpha=cell.alpha, beta=cell.beta)


def limits(cell: Cell, _: Images, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The mean sharpness of each seed over the last steps."""
    digits = load("digits").train
    x, targets = digits.images[None, :600], F.one_hot(digits.labels[:600], 10).float()
    model = Networks((64, 64, 64, 10), seeds, torch.tanh)
    optimizer, sharpness = optimizer_of(cell, model), Sharpness(list(model.parameters()))
    found = []
    for step in range(STEPS):
        losses = (model(x) - targets).square().sum(2).mean(1) / 2.0
        if step >= STEPS - LAST and step % EVERY == 0:
            found.append(sharpness(losses, 10 if found else 50)[0])
            losses = (model(x) - targets).square().sum(2).mean(1) / 2.0
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return {"sharpness": torch.stack(found).mean(0).tolist(), "loss": losses.tolist()}


def levels(cell: Cell, images: Images, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Step, sharpness and squared gradient norm of each seed at each level; None where it is not reached."""
    x, y = images.train.images[None, :1000], images.train.labels[None, :1000]
    model = Networks((images.pixels, 64, 10), seeds, torch.tanh)
    optimizer, sharpness = optimizer_of(cell, model), Sharpness(list(model.parameters()))
    names = ("steps", "sharpness", "squared_gradient")
    found: dict[str, list[list[float | None]]] = {name: [[None] * len(seeds) for _ in LEVELS] for name in names}
    for step in range(6 * STEPS):
        losses = model.cross_entropy(x, y)
        values = losses.tolist()
        fresh = [
            (i, j)
            for i, level in enumerate(LEVELS)
            for j, value in enumerate(values)
            if value <= level and found["steps"][i][j] is None
        ]
        if fresh:
            measured = (torch.full((len(seeds),), float(step)), *sharpness(losses, 40))
            for name, row in zip(names, measured, strict=True):
                for i, j in fresh:
                    found[name][i][j] = float(row[j])
            if None not in found["steps"][-1]:
                break
            losses = model.cross_entropy(x, y)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return found


def tables(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    for eta, momentum in LIMITS:
        lines += ["", f"limits, η = {eta:g}, momentum {momentum:g}", ""]
        lines += ["| α, β1 | limit / η | sharpness |", "|---|---|---|"]
        for cell in _at("limits", eta, momentum):
            found = record["cells"][cell.key]
            lines.append(f"| {_name(cell)} | {_limit(cell):.1f} | {_over(found['sharpness'])} |")
    for eta, momentum in LEVELS_AT:
        lines += ["", f"levels, {record['data']}, η = {eta:g}, momentum {momentum:g}", ""]
        heads = [f"sharpness at {level:g}" for level in LEVELS] + [f"% at {level:g}" for level in LEVELS]
        lines += [
            "| α, β1 | S | limit / η | "
            + " | ".join(heads)
            + f" | ‖∇L‖², % at {LEVELS[0]:g} | steps to {LEVELS[-1]:g} |"
        ]
        lines += ["|---" * (len(heads) + 5) + "|"]
        alone = record["cells"][Cell("levels", eta, momentum, 0.0, 0.0).key]
        for cell in _at("levels", eta, momentum):
            found = record["cells"][cell.key]
            strength = round(implicit_regularization(cell.alpha, momentum=momentum), 9)
            row = [_name(cell), f"{strength:g}", f"{_limit(cell):.1f}", *map(_over, found["sharpness"])]
            row += [_more(mine, base) for mine, base in zip(found["sharpness"], alone["sharpness"], strict=True)]
            row += [_more(found["squared_gradient"][0], alone["squared_gradient"][0]), _over(found["steps"][-1])]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _at(experiment: str, eta: float, momentum: float) -> list[Cell]:
    return [cell for cell in CELLS if cell[:3] == (experiment, eta, momentum)]


def _name(cell: Cell) -> str:
    return "none" if cell.alpha == 0.0 else f"{cell.alpha:g}, {cell.beta:g}"


def _limit(cell: Cell) -> float:
    return stability_limit(cell.alpha, cell.beta, momentum=cell.momentum) / cell.eta


def _more(values: list[float | None], base: list[float | None]) -> str:
    """By how many per cent they are more than without E, at the same seed: mean and half-width."""
    pairs = [(v, b) for v, b in zip(values, base, strict=True) if v is not None and b is not None]
    if not pairs:
        return "-"
    mean, half = interval([100.0 * (v / b - 1.0) for v, b in pairs])
    return f"{mean:+.1f} ± {half:.1f}"


def _over(values: list[float | None]) -> str:
    """Mean and half-width of the 95 % interval over the seeds; those that never got there are counted."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean, half = interval(there)
    text = f"{mean:.3g} ± {half:.2g}"
    return text if len(there) == len(values) else f"{text} ({len(there)} of {len(values)})"


EXPERIMENTS: dict[str, Callable[[Cell, Images, tuple[int, ...]], dict[str, Any]]] = {"limits": limits, "levels": levels}


def main() -> None:
    """Measure what is missing, print the tables and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="names the record, MACHINE-two-mechanisms-DATA.json")
    parser.add_argument("--data", choices=("auto", "fashion", "digits"), default="auto", help="the images of levels")
    parser.add_argument("--seeds", type=int, default=5, help="of each cell (default 5)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the record")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2")
    torch.set_num_threads(1)
    images = load(options.data)
    seeds = tuple(range(options.seeds))
    path = options.out / f"{options.machine}-two-mechanisms-{images.name}.json"
    record: dict[str, Any] = {"data": images.name, "seeds": seeds, "levels": LEVELS, "cells": {}}
    if path.exists() and (stored := json.loads(path.read_text()))["seeds"] == list(seeds):
        record["cells"] = stored["cells"]
    options.out.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        if cell.key not in record["cells"]:
            record["cells"][cell.key] = EXPERIMENTS[cell.experiment](cell, images, seeds)
            print(cell.key, flush=True)
            path.write_text(json.dumps({**record, "environment": environment()}, indent=1) + "\n")
    print(tables(record))
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on")
