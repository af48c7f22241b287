"""Does exploration end flatter? Training to one loss with E in front of four bases, α from negative to positive.

A cell is a task, a base and an (α, β1). Its learning rate is tuned by itself: from high to low by factors of three, on
a seed of its own, until no rate takes fewer steps to the target. Fresh seeds, the same for all cells, are trained
to the target at that learning rate, and once more at one learning rate that all cells of a base have in common;
flatness is measured where they get there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from thalweg.studies.measurements.convergence import batches
from thalweg.studies.measurements.networks import TopEigenvalues, of_seed, optimizer
from thalweg.studies.measurements.problems import Problem, problems
from thalweg.studies.pages.settings import MOMENTUM, Settings
from thalweg.theory import stability_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer


MEASURES = ("steps", "loss", "test", "sharpness", "normalised", "gradient", "share")
EVERY = 5  # steps between looks at the training loss
TUNING = 0
"""The seed that chooses the learning rate; those that are reported are 1, 2, ..."""


def wanted(options: dict[str, Any]) -> list[Settings]:
    """Each base at each (α, β1) of each task.

    Args:
        options: a table for each task with ``settings`` (pairs [α, β1]), ``bases`` (for each its highest learning rate
            and the common one, 0 for none), ``target``, ``batch``, ``examples`` and ``steps`` (at most, while tuning;
            at the common learning rate five times as many); ``seeds``, those reported.
    """
    return [
        {"task": task, "base": base, "alpha": float(alpha), "beta": float(beta), "highest": float(highest),
         "common": float(common), "seeds": options["seeds"],
         **{key: own[key] for key in ("target", "batch", "examples", "steps")}}
        for task, own in options.items() if isinstance(own, dict)
        for base, (highest, common) in own["bases"].items()
        for alpha, beta in own["settings"]
    ]  # fmt: skip


def measure(settings: Settings) -> dict[str, Any]:
    """Tune, then measure fresh seeds at the tuned learning rate and at the common one.

    Returns:
        ``tried`` ([η, steps to the target on the tuning seed or None] each), ``lr``, and ``tuned`` and ``common``, the
        :data:`MEASURES` of the fresh seeds, None where the target was not reached.
    """
    seeds = list(range(1, settings["seeds"] + 1))
    tried: list[tuple[float, int | None]] = []
    best, best_lr, lr, most = None, None, settings["highest"], settings["steps"]
    for _ in range(8):
        steps = to_target(settings, lr, [TUNING], most, measured=False)["steps"][0]
        tried.append((lr, steps))
        if steps is not None:
            best, best_lr = steps, lr
            most = max(EVERY, steps - 1)  # what takes longer is not better
        elif best is not None:
            break
        lr /= 3.0
    found: dict[str, Any] = {"tried": tried, "lr": best_lr, "tuned": None, "common": None}
    if best_lr is not None:
        found["tuned"] = to_target(settings, best_lr, seeds, 3 * settings["steps"])
    if settings["common"]:
        found["common"] = to_target(settings, settings["common"], seeds, 5 * settings["steps"])
    return found


def to_target(
    settings: Settings, lr: float, seeds: Sequence[int], most: int, *, measured: bool = True
) -> dict[str, list[Any]]:
    """Train until the loss on the sample is at the target; what is measured there, for each seed."""
    found: dict[str, list[Any]] = {name: [] for name in MEASURES}
    for some, problem in problems(settings["task"], seeds, settings["examples"]):
        here = _train(settings, problem, lr, some, most, measured)
        for name, values in found.items():
            values.extend(one.get(name) for one in here)
    return found


def _train(
    settings: Settings, problem: Problem, lr: float, seeds: Sequence[int], most: int, measured: bool
) -> list[dict[str, Any]]:
    params = problem.params
    stepped = optimizer(settings["base"], params, lr, settings["alpha"], settings["beta"])
    tops = TopEigenvalues(problem.sample, tolerance=1e-2)
    found: list[dict[str, Any]] = [{} for _ in seeds]
    ceiling = 3.0 * float(problem.sample(params).detach().max())
    order = batches(problem.examples, settings["batch"], seeds, most)
    for step, batch in enumerate(order, 1):
        stepped.zero_grad()
        torch.autograd.backward(problem.batch(batch).sum())
        stepped.step()
        if step % EVERY and step != most:
            continue
        with torch.no_grad():
            losses = problem.sample(params).tolist()
        test = None
        for i, loss in enumerate(losses):
            if not found[i] and loss <= settings["target"]:
                found[i] = {"steps": step, "loss": loss}
                if measured:
                    test = test or problem.test()
                    found[i] |= {"test": test[i], **_flatness(problem, tops, stepped, i, settings)}
        if all(one or not loss < ceiling for one, loss in zip(found, losses, strict=True)):
            break
    return found


def _flatness(
    problem: Problem, tops: TopEigenvalues, stepped: Optimizer, i: int, settings: Settings
) -> dict[str, float]:
    """Of one seed: λ_max, the same with each layer in units of its own size, ‖∇L‖², and ηλ over its limit."""
    limit = stability_limit(settings["alpha"], settings["beta"], momentum=MOMENTUM[settings["base"]])
    own = [p.detach()[i : i + 1].clone().requires_grad_() for p in problem.params]
    slope = torch.autograd.grad(problem.sample(own).sum(), own)
    sizes = [p.detach().square().mean().sqrt().expand_as(p) for p in own]
    found = {
        "sharpness": tops(problem.params, i),
        "normalised": tops(problem.params, i, of_seed(sizes, 0), "normalised"),
        "gradient": sum(float(g.double().square().sum()) for g in slope),
        "share": tops.preconditioned(problem.params, stepped, i) / limit,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}
