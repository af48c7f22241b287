"""Optimizers on functions with valleys, with E in front: how far they walk, how low they come, how flat they end."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch

from thalweg.experiments.drawing import setting
from thalweg.experiments.work import Record, Settings, carry_out, finished
from thalweg.lab.recipes.page import Grid, Picture, Section
from thalweg.landscape import landscape
from thalweg.landscape.plots import walks_picture
from thalweg.landscape.walks import BASES, Walk, default_lr, numbers, starts, table, walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = {"sgd": "SGD", "adam": "Adam", "lamb": "LAMB"}
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
            of_function = [one for one in wanted if one["function"] == name]
            walks_picture([[_walk(one, 1.0, REPORTED, walkers=2) for one in of_function]], path)


def walks(settings: Settings) -> dict[str, Any]:
    """The numbers of the walks at each learning rate: ``factors`` in their order, ``tuning`` apart."""
    return {
        name: [
            {key: _known(value) for key, value in table([(found, numbers(found))])[0].items()}
            for found in (_walk(settings, factor, seed) for factor in settings["factors"])
        ]
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


def _known(value: Any) -> Any:
    """What JSON can say."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def chosen(record: Record) -> dict[str, Any]:
    """The numbers of the reported walkers at the learning rate at which the tuning walkers visited the lowest losses.

    Where the tuning walkers diverged at all of them, those of the lowest learning rate.
    """
    losses = [
        math.inf if one["lowest"] is None or one["diverged"] > 0.0 else one["lowest"] for one in record.found["tuning"]
    ]
    found: dict[str, Any] = record.found["factors"][losses.index(min(losses))]
    return found


def page(folder: Path) -> Section:
    """For each function what walkers of each setting come to, at one learning rate and at their own."""
    done = finished(folder)
    functions = list(dict.fromkeys(one.settings["function"] for one in done))
    grids = [_grid(name, [one for one in done if one.settings["function"] == name]) for name in functions]
    pictures = [
        Picture(
            path,
            f"Walks on {name}: black without E, blue α < 0, orange α > 0. White line: the floor of the valley; star: "
            "the lowest minimum; cross: another; square: the start; dots: where walks end. Look at how much of the "
            "white line each colour covers.",
        )
        for name in functions
        if (path := folder / f"{name}.png").exists()
    ]
    return Section("", findings=tuple(_findings(done)), grids=tuple(grids), pictures=tuple(pictures))


def _grid(function: str, done: list[Record]) -> Grid:
    size = done[0].settings
    head = (
        "base; α, β1", "same η: floor walked", "lowest loss", "λ_max at the end", "own η / default", "floor walked",
        "lowest loss ", "λ_max at the end ", "minima seen", "ends in the lowest",
    )  # fmt: skip
    rows = []
    for one in done:
        same, own = one.found["factors"][one.settings["factors"].index(1.0)], chosen(one)
        factor = one.settings["factors"][one.found["factors"].index(own)]
        rows.append((
            f"{NAMES[one.settings['base']]}; {setting(one.settings['alpha'], one.settings['beta'])}",
            *(_said(same, name) for name in ("along", "lowest", "end_sharpness")), f"{factor:g}",
            *(_said(own, name) for name in ("along", "lowest", "end_sharpness", "minima", "found_lowest")),
        ))  # fmt: skip
    title = f"{function}: means ± standard errors over {size['walkers']} walkers of {size['steps']} steps"
    return Grid(title, head, tuple(rows))


def _said(row: dict[str, Any], name: str) -> str:
    value, error = row[name], row[f"{name}_standard_error"]
    if value is None:
        return "diverged" if row["diverged"] else ""
    return f"{value:.3g} ± {error:.1g}"


def _findings(done: list[Record]) -> list[str]:
    """How often α < 0 and α > 0 walk further than the base alone, beyond two standard errors of the difference."""
    said = []
    for how, pick in (("the learning rate at which the base alone walks", _same), ("its own learning rate", chosen)):
        for base, name in NAMES.items():
            counts = []
            for sign, word in ((-1.0, "α < 0"), (1.0, "α > 0")):
                further = shorter = flatter = sharper = total = 0
                for one in done:
                    if one.settings["base"] != base or one.settings["alpha"] * sign <= 0.0:
                        continue
                    alone = next(
                        two for two in done
                        if (two.settings["function"], two.settings["base"], two.settings["alpha"])
                        == (one.settings["function"], base, 0.0)
                    )  # fmt: skip
                    total += 1
                    walked = _apart(pick(one), pick(alone), "along")
                    curved = _apart(pick(one), pick(alone), "end_sharpness")
                    further, shorter = further + (walked > 0), shorter + (walked < 0)
                    sharper, flatter = sharper + (curved > 0), flatter + (curved < 0)
                counts.append(
                    f"{word} walks further in {further} and less far in {shorter} of {total}, ends flatter in "
                    f"{flatter} and sharper in {sharper}"
                )
            said.append(f"**{name}, at {how}**: {'; '.join(counts)} (beyond two standard errors of the difference).")
    return said


def _same(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = record.found["factors"][record.settings["factors"].index(1.0)]
    return found


def _apart(a: dict[str, Any], b: dict[str, Any], name: str) -> int:
    """1, -1 or 0: more, less, or not told apart."""
    if a[name] is None or b[name] is None:
        return 0
    difference = a[name] - b[name]
    error = math.hypot(a[f"{name}_standard_error"], b[f"{name}_standard_error"])
    return 0 if abs(difference) <= 2.0 * error else (1 if difference > 0.0 else -1)
