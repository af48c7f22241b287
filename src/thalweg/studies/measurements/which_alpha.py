"""Which α and β1, for which base, batch and budget? Test accuracy on small images, at the best learning rate of each.

Learning rates are a factor 3 apart: a cell starts with three, goes beyond the end that is best, and takes the one with
the best mean validation accuracy over two seeds. With it fresh seeds are trained, which alone see the test set. Seeds
share initial weights and batches. No base decays weights; the schedule is a cosine to zero.
"""

from __future__ import annotations

import math
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from thalweg.studies.measurements.convergence import batches
from thalweg.studies.measurements.networks import optimizer
from thalweg.studies.measurements.problems import Problem, images
from thalweg.studies.pages.settings import Settings
from thalweg.zeroth_order import spsa

if TYPE_CHECKING:
    from collections.abc import Sequence

TUNING = (0, 1)
FIRST_FRESH = 100
FACTOR, MOST = 3.0, 8
"""Between learning rates, and how many are tried at most."""


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Each base at each (α, β1) of each regime.

    Args:
        options: ``task``, ``examples``, ``width`` (of the hidden layer), ``seeds`` (fresh ones), ``settings`` (pairs
            [α, β1]), ``lr`` (of each base, where its search starts), ``regimes`` (by name: ``batch``, ``steps`` and
            ``bases``, of which ``spsa`` is gradient descent on estimates without backpropagation).
    """
    shared = {key: options[key] for key in ("task", "examples", "width", "seeds")}
    return [
        {"regime": name, "base": base, "alpha": float(alpha), "beta": float(beta), "lr": float(options["lr"][base]),
         "batch": regime["batch"], "steps": regime["steps"], **shared}
        for name, regime in options["regimes"].items()
        for base in regime["bases"]
        for alpha, beta in options["settings"]
    ]  # fmt: skip


def measure(settings: Settings) -> dict[str, Any]:
    """Tune, then measure fresh seeds.

    Returns:
        ``tried`` ([η, mean validation accuracy] each), ``lr``, and of the fresh seeds the accuracy on ``tested`` test
        images and the training loss, None where that is not finite.
    """
    found: dict[int, float] = {}

    def validated(k: int) -> float:
        if k not in found:
            trained = train(settings, settings["lr"] * FACTOR**k, TUNING)
            found[k] = mean(value for one in trained for value in one.validation())
        return found[k]

    best = max((-1, 0, 1), key=validated)
    while best in (min(found), max(found)) and len(found) < MOST:
        validated(best - 1 if best == min(found) else best + 1)
        best = max(found, key=found.__getitem__)
    lr = settings["lr"] * FACTOR**best
    trained = train(settings, lr, range(FIRST_FRESH, FIRST_FRESH + settings["seeds"]))
    with torch.no_grad():
        losses = [loss for one in trained for loss in one.sample(one.params).tolist()]
    return {
        "tried": [[settings["lr"] * FACTOR**k, accuracy] for k, accuracy in sorted(found.items())],
        "lr": lr,
        "tested": trained[0].tested,
        "test": [value for one in trained for value in one.test()],
        "loss": [loss if math.isfinite(loss) else None for loss in losses],
    }


def train(settings: Settings, lr: float, seeds: Sequence[int]) -> list[Problem]:
    """Networks of these seeds, trained: all together, or one by one, as an estimate is of one loss."""
    estimated = settings["base"] == "spsa"
    if estimated and len(seeds) > 1:
        return [one for seed in seeds for one in train(settings, lr, [seed])]
    problem = images(settings["task"], seeds, settings["examples"], settings["width"])
    base = "gd" if estimated else settings["base"]
    stepped = optimizer(base, problem.params, lr, settings["alpha"], settings["beta"], decayed=False)
    schedule = CosineAnnealingLR(stepped, settings["steps"])
    for k, batch in enumerate(batches(problem.examples, settings["batch"], seeds, settings["steps"])):
        stepped.zero_grad()
        if estimated:
            spsa(lambda at=batch: problem.batch(at)[0], problem.params, seed=100_000 * seeds[0] + k)  # type: ignore[misc]
        else:
            torch.autograd.backward(problem.batch(batch).sum())
        stepped.step()
        schedule.step()
    return [problem]
