"""What :mod:`thalweg.studies.measurements.convergence` found, beside what the theorem says."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg.report import drawing, palette
from thalweg.report.statistics import interval
from thalweg.studies.pages.numbers import PLAIN, over, slope
from thalweg.studies.pages.settings import Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = {"adam": "E(Adam)", "lamb": "ALTO"}
ALONE = {"adam": "Adam", "lamb": "LAMB"}
TUNING = 0
"""The seed that chooses η of the convex runs; it is not reported."""
NEAR = 0.05
"""So near to -1 a slope says that the sum of ‖∇f‖² has all but stopped to grow."""


def page(folder: Path) -> Section:
    """Slopes with their intervals over seeds, the theorem's condition, and both curves."""
    done = finished(folder)
    convex, network = tuned(done), [one for one in done if one.settings["loss"] == "network"]
    grids = ([_regret(convex)] if convex else []) + ([_gradients(network)] if network else [])
    pictures = [_picture(convex, network, folder / "convergence.svg")] if convex and network else []
    return Section(findings=[*_of_regret(convex), *_of_gradients(network)], grids=grids, pictures=pictures)


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
    base = one.settings["base"]
    return ALONE[base] if one.settings["alpha"] == 0.0 else f"{NAMES[base]} {one.setting}"


def _regret(convex: list[Record]) -> Grid:
    first = convex[0]
    steps, best = first.settings["steps"], first.found["optimum"]
    head = (
        "optimizer", "η", "R(T) / √T", "slope of R", "condition: steps", "in the last half", "entries always", "of v̂",
    )  # fmt: skip
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
        f"Convex, η_k = η/√k, T = {steps}: slope over the last decade, mean and half-width of the 95 % interval over "
        "the seeds but the one that chose η; the theorem says at most .5. Condition: the share of (entry, step) at "
        f"which its quantity did not fall. ℓ(θ*) = {best['loss']:.10f}, largest entry of its gradient "
        f"{best['gradient']:.1g}",
        head, rows,
    )  # fmt: skip


def _gradients(network: list[Record]) -> Grid:
    head = (
        "optimizer", "η_k", "ridge", "full batch: slope", "mean of ‖∇f‖²", "last loss", "batches: slope",
        "mean of ‖∇f‖² ", "last loss ",
    )  # fmt: skip
    pairs: dict[tuple[object, ...], dict[bool, Record]] = {}
    for one in network:
        key = tuple(one.settings[name] for name in ("ridge", "base", "alpha", "beta", "decays"))
        pairs.setdefault(key, {})[bool(one.settings["full"])] = one
    rows = []
    for both in pairs.values():
        known = next(iter(both.values()))
        row = [_name(known), f"{known.settings['eta']:g}" + ("/√k" if known.settings["decays"] else "")]
        row.append(f"{known.settings['ridge']:g}")
        for full in (True, False):
            row += _of_gradient(both.get(full))
        rows.append(row)
    steps = network[0].settings["steps"]
    return Grid(
        f"Not convex, T = {steps}: slope of the running mean of ‖∇f‖² over its last decade, mean and half-width of the "
        "95 % interval over seeds; the theorem says -1, also the least possible: a running mean falls at most as 1/T",
        head, rows,
    )  # fmt: skip


def _of_gradient(one: Record | None) -> list[str]:
    if one is None:
        return ["", "", ""]
    last = [curve[-1] for curve in one.found["mean"]]
    return [over(slopes(one.found["at"], one.found["mean"])), over(last), over(one.found["loss"])]


def _of_regret(convex: list[Record]) -> list[str]:
    said = []
    for base, name in NAMES.items():
        own = [one for one in convex if one.has(base=base)]
        if not own:
            continue
        found = {_name(one): interval(slopes(one.found["at"], _reported(one)), PLAIN) for one in own}
        above = [who for who, one in found.items() if one.low is not None and one.low > 0.5]
        verdict = "compatible with O(√T) for all" if not above else f"above .5 for {', '.join(above)}"
        shares = [one.found["condition"]["as written"] for one in own]
        always = max(each["always"] for each in shares)
        least, most = (100.0 * pick(each["increased"] for each in shares) for pick in (min, max))
        held = f"in {least:.0f} to {most:.0f} %"
        said.append(
            f"**Convex, {ALONE[base]} and {name}**: slopes of R(T) "
            f"{', '.join(f'{one.mean:.3f}' for one in found.values())}, {verdict}. The theorem's condition held {held} "
            f"of entries and steps, at every step in {'no' if always == 0 else f'at most {100 * always:.1f} % of'} "
            f"{'entry' if always == 0 else 'entries'}: "
            + ("regret grew no faster although the assumption does not hold." if always < 1.0 and not above else "")
            + ("regret grew faster, and the assumption does not hold." if always < 1.0 and above else "")
            + ("the assumption holds." if always == 1.0 else "")
        )
    return said


def _of_gradients(network: list[Record]) -> list[str]:
    said = []
    kinds = dict.fromkeys((one.settings["full"], one.settings["ridge"], one.settings["decays"]) for one in network)
    for full, strength, decays in sorted(kinds, key=lambda kind: (not kind[0], kind[1], kind[2])):
        own = [one for one in network if one.has(full=full, ridge=strength, decays=decays)]
        found = {_name(one): interval(slopes(one.found["at"], one.found["mean"]), PLAIN) for one in own}
        met = [who for who, one in found.items() if one.mean <= -1.0 + NEAR]
        where = f"{'full batch' if full else 'batches'}, ridge {strength:g}, {'η/√k' if decays else 'constant η'}"
        verdict = "1/T holds for all" if len(met) == len(found) else f"1/T holds for {', '.join(met) or 'none'}"
        said.append(
            f"**Not convex, {where}** — {verdict} (within {NEAR:g} of -1): "
            f"{', '.join(f'{who} {one.mean:.3f}' for who, one in found.items())}."
        )
    return said


def _picture(convex: list[Record], network: list[Record], path: Path) -> Picture:
    drawn = drawing.figure(10.5, 3.9)
    left, middle, right = drawn.subplots(1, 3)
    styles: dict[str, dict[str, Any]] = {}
    for one in convex:
        base, alpha = one.settings["base"], one.settings["alpha"]
        colour = palette.colour(base) if alpha == 0.0 else palette.of_alpha(alpha)
        styles[_name(one)] = {"color": colour, "linestyle": "-" if base == "adam" else (0, (5, 2))}
    for one in convex:
        at, curve = one.found["at"], np.mean(_reported(one), axis=0)
        left.plot(at, curve, label=_name(one), lw=1.6, **styles[_name(one)])
    at = np.array(convex[0].found["at"], float)
    start = mean(float(np.mean(_reported(one), axis=0)[0]) for one in convex)
    left.plot(at, 2.0 * start * at**0.5, color=palette.INK, lw=0.9, ls=":", label="√T")
    left.set(xscale="log", yscale="log", xlabel="T", ylabel="regret R(T)", title="convex, η/√k")
    strengths = sorted({one.settings["ridge"] for one in network})
    for ax, full, strength in ((middle, True, strengths[0]), (right, False, strengths[-1])):
        for one in network:
            if one.has(full=full, ridge=strength, decays=False):
                ax.plot(one.found["at"], np.mean(one.found["mean"], axis=0), lw=1.6, **styles.get(_name(one), {}))
        at = np.array(network[0].found["at"], float)
        first = network[0].found["mean"][0][0]
        ax.plot(at, 10.0 * first / at, color=palette.INK, lw=0.9, ls=":", label="1/T")
        ax.legend(fontsize=7)
        what = "full batch" if full else "batches"
        ax.set(xscale="log", yscale="log", xlabel="T", title=f"network, {what}, ridge {strength:g}, constant η")
    middle.set_ylabel("mean of ‖∇f‖² up to T")
    left.legend(fontsize=7)
    for ax in (left, middle, right):
        ax.title.set_fontsize(9)
    return Picture(
        drawing.save(drawn, path),
        "Left: regret of logistic regression; the theorem says no steeper than the dotted √T. Middle and "
        "right: the running mean of ‖∇f‖² of a network; parallel to the dotted line is 1/T. Curves that level off do "
        "not follow the theorem. Means over seeds.",
    )
