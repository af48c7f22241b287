"""What :mod:`thalweg.experiments.convergence` found, beside what the theorem says."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from thalweg.experiments import drawing
from thalweg.experiments.drawing import setting
from thalweg.experiments.numbers import over, slope
from thalweg.experiments.work import Record, finished
from thalweg.lab.metric import Metric
from thalweg.lab.recipes.page import Grid, Picture, Section
from thalweg.lab.statistics import Interval, interval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = {"adam": "E(Adam)", "lamb": "ALTO"}
ALONE = {"adam": "Adam", "lamb": "LAMB"}
TUNING = 0
"""The seed that chooses η of the convex runs; it is not reported."""


def page(folder: Path) -> Section:
    """Slopes with their intervals over seeds, the theorem's condition, and both curves."""
    done = finished(folder)
    convex, network = tuned(done), [one for one in done if one.settings["loss"] == "network"]
    grids = ([_regret(convex)] if convex else []) + ([_gradients(network)] if network else [])
    pictures = (_picture(convex, network, folder / "convergence.svg"),) if convex and network else ()
    return Section("", (), (*_of_regret(convex), *_of_gradients(network)), tuple(grids), pictures)


def tuned(done: Sequence[Record]) -> list[Record]:
    """Of each optimizer the convex record whose η has the least regret of the tuning seed."""
    best: dict[tuple[object, ...], Record] = {}
    for one in done:
        if one.settings["loss"] == "convex":
            key = tuple(one.settings[name] for name in ("base", "alpha", "beta"))
            if key not in best or one.found["regret"][TUNING][-1] < best[key].found["regret"][TUNING][-1]:
                best[key] = one
    return list(best.values())


def slopes(at: Sequence[int], curves: Sequence[Sequence[float]], share: float = 0.1) -> list[float]:
    """Of each curve the slope on logarithmic axes over its last decade, from ``share`` of the steps on."""
    kept = [i for i, step in enumerate(at) if step >= share * at[-1]]
    return [slope([at[i] for i in kept], [curve[i] for i in kept]) for curve in curves]


def _reported(one: Record) -> list[list[float]]:
    curves = [curve for seed, curve in enumerate(one.found["regret"]) if seed != TUNING]
    return curves or one.found["regret"]


def _name(one: Record) -> str:
    known, pair = one.settings, (one.settings["alpha"], one.settings["beta"])
    return ALONE[known["base"]] if known["alpha"] == 0.0 else f"{NAMES[known['base']]} {setting(*pair)}"


def _regret(convex: list[Record]) -> Grid:
    first = convex[0]
    steps, best = first.settings["steps"], first.found["optimum"]
    head = ("optimizer", "η", "R(T) / √T", "slope of R", "condition: steps", "in the last half", "entries always", "of v̂")
    rows = []
    for one in convex:
        condition = one.found["condition"]["as written"]
        rows.append((
            _name(one), f"{one.settings['eta']:g}", over([curve[-1] / steps**0.5 for curve in _reported(one)]),
            over(slopes(one.found["at"], _reported(one))), f"{100 * condition['increased']:.1f} %",
            f"{100 * condition['late']:.1f} %", f"{100 * condition['always']:.1f} %",
            f"{100 * one.found['condition']['corrected']['increased']:.1f} %",
        ))  # fmt: skip
    return Grid(
        f"Convex, η_k = η/√k, T = {steps}: mean and half-width of the 95 % interval over seeds; the theorem says at most .5. "
        f"Condition: the share of (entry, step) at which its quantity did not fall. ℓ(θ*) = {best['loss']:.10f}, largest "
        f"entry of its gradient {best['gradient']:.1g}",
        head,
        tuple(rows),
    )


def _gradients(network: list[Record]) -> Grid:
    head = ("optimizer", "η_k", "full batch: slope", "mean of ‖∇f‖²", "last loss", "batches: slope", "mean of ‖∇f‖² ", "last loss ")
    pairs: dict[tuple[object, ...], dict[bool, Record]] = {}
    for one in network:
        key = tuple(one.settings[name] for name in ("base", "alpha", "beta", "decays"))
        pairs.setdefault(key, {})[bool(one.settings["full"])] = one
    rows = []
    for both in pairs.values():
        some = next(iter(both.values()))
        row = [_name(some), f"{some.settings['eta']:g}" + ("/√k" if some.settings["decays"] else "")]
        for full in (True, False):
            one = both.get(full)
            row += (
                [over(slopes(one.found["at"], one.found["mean"])), over([curve[-1] for curve in one.found["mean"]]),
                 over(one.found["loss"])]
                if one else ["", "", ""]
            )  # fmt: skip
        rows.append(tuple(row))
    steps = network[0].settings["steps"]
    return Grid(
        f"Not convex, T = {steps}: slope of the running mean of ‖∇f‖² over its last decade; the theorem says -1 or less",
        head, tuple(rows),
    )  # fmt: skip


def interval_of(values: Sequence[float]) -> Interval:
    """With its limits."""
    return interval(values, Metric("slope", "min"))


def _of_regret(convex: list[Record]) -> list[str]:
    said = []
    for base, name in NAMES.items():
        own = [one for one in convex if one.settings["base"] == base]
        if not own:
            continue
        found = {_name(one): interval_of(slopes(one.found["at"], _reported(one))) for one in own}
        above = [who for who, one in found.items() if one.low is not None and one.low > 0.5]
        verdict = "compatible with O(√T) for all" if not above else f"above .5 for {', '.join(above)}"
        shares = [one.found["condition"]["as written"] for one in own]
        always = max(each["always"] for each in shares)
        held = f"in {100 * min(each['increased'] for each in shares):.0f} to {100 * max(each['increased'] for each in shares):.0f} %"
        said.append(
            f"**Convex, {ALONE[base]} and {name}**: slopes of R(T) "
            f"{', '.join(f'{one.mean:.3f}' for one in found.values())}, {verdict}. The theorem's condition held {held} of "
            f"entries and steps, at every step in {'no' if always == 0 else f'at most {100 * always:.1f} % of'} "
            f"{'entry' if always == 0 else 'entries'}: "
            + ("the bound is met although its assumption is not." if always < 1.0 and not above else "")
            + ("the bound is not met, nor is its assumption." if always < 1.0 and above else "")
            + ("the assumption holds." if always == 1.0 else "")
        )
    return said


def _of_gradients(network: list[Record]) -> list[str]:
    said = []
    for full, words in ((True, "full batch"), (False, "batches")):
        for decays, how in ((False, "constant η"), (True, "η/√k")):
            found = {
                _name(one): interval_of(slopes(one.found["at"], one.found["mean"]))
                for one in network if one.settings["full"] is full and one.settings["decays"] is decays
            }  # fmt: skip
            if not found:
                continue
            met = [who for who, one in found.items() if (one.mean if one.low is None else one.low) <= -1.0]
            means = ", ".join(f"{who} {one.mean:.2f}" for who, one in found.items())
            verdict = f"-1 is within reach of {', '.join(met)}" if met else "nobody is at -1"
            said.append(f"**Not convex, {words}, {how}**: slopes {means}; {verdict}.")
    return said


def _picture(convex: list[Record], network: list[Record], path: Path) -> Picture:
    drawn = drawing.figure(10.5, 3.9)
    left, middle, right = drawn.subplots(1, 3)
    styles = {
        _name(one): {"color": drawing.COLOURS[k % 7], "linestyle": "-" if one.settings["base"] == "adam" else (0, (4, 1.5))}
        for k, one in enumerate(convex)
    }
    for one in convex:
        at, curve = one.found["at"], np.mean(_reported(one), axis=0)
        left.plot(at, curve, label=_name(one), lw=1.4, **styles[_name(one)])
    at = np.array(convex[0].found["at"], float)
    start = mean(float(np.mean(_reported(one), axis=0)[0]) for one in convex)
    left.plot(at, 2.0 * start * at**0.5, color=drawing.GREY, lw=0.9, ls=":", label="√T")
    left.set(xscale="log", yscale="log", xlabel="T", ylabel="regret R(T)", title="convex, η/√k")
    for ax, full in ((middle, True), (right, False)):
        for one in network:
            if one.settings["full"] is full and not one.settings["decays"]:
                ax.plot(one.found["at"], np.mean(one.found["mean"], axis=0), lw=1.4, **styles.get(_name(one), {}))
        at = np.array(network[0].found["at"], float)
        first = network[0].found["mean"][0][0]
        ax.plot(at, first * 10.0 / at, color=drawing.GREY, lw=0.9, ls="--")
        ax.annotate("1/T", (at[-1] / 3, first * 30.0 / at[-1] * 1.2), color=drawing.GREY, fontsize=8)
        ax.set(xscale="log", yscale="log", xlabel="T", title=f"network, {'full batch' if full else 'batches'}, constant η")
    middle.set(ylabel="running mean of ‖∇f‖²")
    left.legend(fontsize=7)
    return Picture(
        drawing.save(drawn, path),
        "Left: regret of logistic regression; no steeper than the dotted √T is what the theorem says. Middle and right: the "
        "running mean of ‖∇f‖² of a network; parallel to the dashed line is 1/T. Curves that level off do not follow the "
        "theorem. Means over seeds.",
    )
