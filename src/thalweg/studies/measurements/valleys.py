"""Optimizers on functions with valleys, with E in front: how far they walk, how low they come, how flat they end."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from thalweg.landscape import landscape
from thalweg.landscape.plots import walks_picture
from thalweg.landscape.walks import BASES, Walk, default_lr, numbers, starts, walk
from thalweg.studies.measurements.work import carry_out
from thalweg.studies.pages.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TUNING, REPORTED = 0, 1
"""Seeds of starts and noise: of the walkers that choose the learning rate, and of those that are reported."""


def run(options: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Walk on each function from many starts, and draw one walk of each setting.

    Args:
        options: ``functions``, ``settings`` (pairs [α, β1]), ``factors`` (of the learning rate at which the base alone
            walks), ``steps``, ``walkers``, ``noise`` (of the gradient's norm at the start), and ``jobs``.
        folder: where records and pictures go.
        say: told of progress.
    """
    shared = {key: options[key] for key in ("factors", "steps", "walkers", "noise")}
    wanted: list[Settings] = [
        {"function": name, "base": base, "alpha": float(alpha), "beta": float(beta), **shared}
        for name in options["functions"] for base in BASES for alpha, beta in options["settings"]
    ]  # fmt: skip
    carry_out(wanted, walks, folder, say, jobs=options.get("jobs"))
    for name in options["functions"]:
        path = folder / f"{name}.png"
        if not path.exists():
            say(f"drawing {path.name}")
            rows = [[one for one in wanted if (one["function"], one["base"]) == (name, base)] for base in BASES]
            walks_picture([[_walk(one, 1.0, REPORTED, walkers=2) for one in row] for row in rows], path)


def walks(settings: Settings) -> dict[str, Any]:
    """The numbers of the walks at each learning rate: ``factors`` in their order, ``tuning`` apart."""
    return {
        name: [_row(_walk(settings, factor, seed)) for factor in settings["factors"]]
        for name, seed in (("tuning", TUNING), ("factors", REPORTED))
    }


def _walk(settings: Settings, factor: float, seed: int, walkers: int | None = None) -> Walk:
    function, base = landscape(settings["function"]), settings["base"]
    begin = starts(function, walkers or settings["walkers"], seed=seed)
    place = torch.tensor([function.start], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(place).sum(), place)
    with warnings.catch_warnings():  # settings with a narrow stable range are what is measured
        warnings.simplefilter("ignore", UserWarning)
        return walk(
            function, base, settings["alpha"], settings["beta"], lr=factor * default_lr(function, base),
            steps=settings["steps"], begin=begin, noise=settings["noise"] * slope.norm().item(), seed=seed,
        )  # fmt: skip


def _row(walked: Walk) -> dict[str, float | None]:
    """What the walks come to, each mean with its standard error; None where that is not finite, for JSON."""
    found = numbers(walked)
    row = {"lr": walked.lr, "diverged": found.diverged}
    for name in ("along", "lowest", "minima", "found_lowest", "end_loss", "end_sharpness", "end_trace"):
        one = getattr(found, name)
        row[name], row[f"{name}_standard_error"] = one.value, one.standard_error
    return {name: value if math.isfinite(value) else None for name, value in row.items()}
