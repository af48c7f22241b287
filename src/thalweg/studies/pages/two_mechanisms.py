"""Sharpness on the way down, beside S and the stability limit: what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from thalweg.report import drawing, palette, words
from thalweg.report.statistics import interval
from thalweg.studies.pages.numbers import PLAIN, Ratio, bars, over, ratios
from thalweg.studies.pages.settings import Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

NAMES = {"gd": "no momentum", "momentum": "momentum .9"}
STYLES = {"gd": (palette.colour("sgd"), "o"), "momentum": (palette.colour("momentum"), "^")}
NEAR = 0.7
"""Sharpness above this share of its limit is at the edge of stability, below it is not."""

Descent = list[Record]
"""The settings of one base and learning rate, the first of them without E."""


def page(folder: Path) -> Section:
    """Each descent in a table, and what orders its sharpness."""
    descents = descents_of(finished(folder))
    comparisons = max(1, sum((len(own) - 1) * (len(own[0].settings["levels"]) + 1) for own in descents))
    drawn = drawing.figure(9.0, 4.2)
    left, right = drawn.subplots(1, 2)
    draw_below(left, descents, comparisons)
    draw_at(right, descents)
    picture = Picture(
        drawing.save(drawn, folder / "two-mechanisms.svg"),
        "Sharpness where the training loss first falls to a level, bars 95 %. Left: below the edge of stability, in "
        "per cent of that without E, over S. Right: at the edge, over the stability limit; on the line both are equal.",
    )
    findings = [text for one in descents for text in _findings(one, comparisons)]
    findings.insert(0, f"Ratios to training without E: {words.corrected(comparisons)}")
    return Section(findings=findings, grids=[_grid(one, comparisons) for one in descents], pictures=[picture])


def descents_of(done: Sequence[Record]) -> list[Descent]:
    """The records by base and learning rate, those of which one is without E."""
    keys = dict.fromkeys((one.settings["base"], one.settings["lr"]) for one in done)
    found = [[one for one in done if one.has(base=base, lr=lr)] for base, lr in keys]
    ordered = [sorted(own, key=lambda one: one.settings["alpha"] != 0.0) for own in found]
    return [own for own in ordered if own[0].settings["alpha"] == 0.0]


def threshold(one: Record) -> float:
    """The sharpness at which a record's setting becomes unstable, its limit over η."""
    eta: float = one.settings["lr"]
    return one.limit / eta


def at_edge(descent: Descent) -> bool:
    """Whether training without E meets its stability limit on the way."""
    alone = descent[0]
    reached = [value for level in alone.found["sharpness"] for value in level if value is not None]
    return bool(reached) and max(reached) > NEAR * threshold(alone)


def _title(descent: Descent) -> str:
    known = descent[0].settings
    return f"{NAMES[known['base']]}, η = {known['lr']:g}"


def _grid(descent: Descent, comparisons: int) -> Grid:
    alone, known = descent[0], descent[0].settings
    levels = known["levels"]
    head = (
        "α, β1", "S", "limit / η", *(f"λ_max at {level:g}" for level in levels),
        *(f"change from no E, %, at {level:g}" for level in levels), f"‖∇L‖², %, at {levels[0]:g}",
        f"steps to {levels[-1]:g}",
    )  # fmt: skip
    rows = []
    for one in descent:
        pairs = zip(one.found["sharpness"], alone.found["sharpness"], strict=True)
        compared = [*pairs, (one.found["gradient"][0], alone.found["gradient"][0])]
        rows.append((
            one.setting, f"{one.strength:.3g}", f"{threshold(one):.1f}", *map(over, one.found["sharpness"]),
            *("" if one is alone else _per_cent(ratios(mine, base, comparisons)) for mine, base in compared),
            over(one.found["steps"][-1]),
        ))  # fmt: skip
    over_seeds = f"mean and half-width, or ratio with limits, of 95 %, {known['seeds']} seeds"
    return Grid(f"{known['task']}, {_title(descent)}: {over_seeds}", head, rows)


def _to_alone(one: Record, descent: Descent, comparisons: int) -> Ratio | None:
    """Of the sharpness at the first level, to that without E."""
    return ratios(one.found["sharpness"][0], descent[0].found["sharpness"][0], comparisons)


def _per_cent(ratio: Ratio | None) -> str:
    """By how many per cent, with limits."""
    if ratio is None:
        return ""
    mean, low, high = (100.0 * (value - 1.0) for value in (ratio.mean, ratio.low, ratio.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _findings(descent: Descent, comparisons: int) -> list[str]:
    found = [(one, ratio) for one in descent[1:] if (ratio := _to_alone(one, descent, comparisons)) is not None]
    if not found:
        return []
    flatter, sharper = sum(ratio.below for _, ratio in found), sum(ratio.above for _, ratio in found)
    said = f"{flatter} of {len(found)} settings are flatter than without E, {sharper} sharper"
    if len(found) > 2:
        values = [ratio.mean for _, ratio in found]
        known = [[one.strength for one, _ in found], [one.limit for one, _ in found]]
        ranks = [spearmanr(each, values).statistic for each in known]
        said += f"; rank correlation of λ_max with S {ranks[0]:.2f}, with the limit {ranks[1]:.2f}"
    where = "at the edge of stability" if at_edge(descent) else "below the edge of stability"
    return [f"**{_title(descent)}, {where}**, at a loss of {descent[0].settings['levels'][0]:g}: {said}."]


def draw_below(ax: Axes, descents: Sequence[Descent], comparisons: int = 1) -> None:
    """Below the edge: sharpness at the first level to that without E, in per cent, over S."""
    for descent in descents:
        found = [(one, ratio) for one in descent if (ratio := _to_alone(one, descent, comparisons)) is not None]
        if found and not at_edge(descent):
            colour, marker = STYLES[descent[0].settings["base"]]
            compared = [ratio for _, ratio in found]
            more = [100.0 * (ratio.mean - 1.0) for ratio in compared]
            error = 100.0 * np.array(bars(compared))
            x = [one.strength for one, _ in found]
            ax.errorbar(x, more, error, fmt=marker, color=colour, label=_title(descent), capsize=2)
            ax.set(ylabel=f"sharpness at loss {descent[0].settings['levels'][0]:g} relative to no E, %")
            ax.legend(fontsize=8)
    ax.axhline(0.0, color=palette.INK, linewidth=0.8)
    ax.set(xlabel="S")
    ax.set_title("Below the edge", fontsize=10)


def draw_at(ax: Axes, descents: Sequence[Descent]) -> None:
    """At the edge: sharpness at the last level over the stability limit."""
    ax.axline((0.0, 0.0), slope=1.0, color=palette.INK, linewidth=0.8)
    for descent in filter(at_edge, descents):
        colour, marker = STYLES[descent[0].settings["base"]]
        there = [one for one in descent if any(one.found["sharpness"][-1])]
        found = [interval([value for value in one.found["sharpness"][-1] if value], PLAIN) for one in there]
        x, y = [threshold(one) for one in there], [each.mean for each in found]
        ax.errorbar(x, y, [each.reach[1] for each in found], fmt=marker, color=colour, label=_title(descent), capsize=2)
        for one, where in zip(there, zip(x, y, strict=True), strict=True):
            ax.annotate(one.setting, where, (7, -9), textcoords="offset points", fontsize=7)
        ax.set(ylabel=f"sharpness at loss {descent[0].settings['levels'][-1]:g}")
        ax.legend(fontsize=8, loc="lower right")
    ax.margins(0.15)
    ax.set(xlim=(0, None), ylim=(0, None), xlabel="stability limit over η")
    ax.set_title("At the edge", fontsize=10)
