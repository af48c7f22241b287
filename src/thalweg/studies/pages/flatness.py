"""What :mod:`thalweg.studies.measurements.flatness` found: is α < 0 slower and flatter, α > 0 faster and sharper?"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from scipy.stats import spearmanr

from thalweg.report import drawing, palette
from thalweg.report.decisions import Outcome
from thalweg.studies.claims import marked
from thalweg.studies.pages.numbers import Ratio, bars, over, pooled, ratios
from thalweg.studies.pages.settings import Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

METRICS = {"digits": "test accuracy, %", "fashion-mnist": "test accuracy, %", "pydoc-lm": "test loss, nats/byte"}
NAMES = {"gd": "SGD", "momentum": "SGD, momentum .9", "adamw": "AdamW", "lamb": "LAMB"}
MARKERS = {"digits": "o", "fashion-mnist": "s", "pydoc-lm": "^"}
GROUPS = [
    (with_momentum, sign, name, slower)
    for with_momentum in (False, True)
    for sign, name, slower in ((-1.0, "α < 0", True), (1.0, "α > 0", False))
]
"""Whether the base has momentum, α's sign and name, and whether the slides say that it is slower and flatter."""
WHERE = {"tuned": "each at its own learning rate", "common": "at one learning rate for all of a base"}


class ComparedFlatness(NamedTuple):
    """A setting of E beside its base alone, over the seeds that both have."""

    record: Record
    found: dict[str, list[Any]]
    alone: dict[str, list[Any]]
    eta: float
    compared: dict[str, Ratio | None]
    """Ratios to the base alone, of steps, sharpness, normalised sharpness and squared gradient norm."""

    @property
    def alpha(self) -> float:
        """α."""
        return float(self.record.settings["alpha"])

    def decided(self, measure: str, below: bool) -> bool:
        """Whether a ratio is below, or above, 1 with all of its interval."""
        one = self.compared[measure]
        return one is not None and (one.below if below else one.above)


def page(folder: Path) -> Section:
    """Every cell, how often the claim holds, and what theory says of it."""
    done = finished(folder)
    cells = {where: cells_of(done, where) for where in WHERE}
    shown = [one for own in cells.values() for one in own if one.alpha != 0.0]
    single = sum(pair is not None for one in shown for pair in one.compared.values())
    means = 2 * len(GROUPS) * len(WHERE)
    cells = {where: cells_of(done, where, max(1, 2 * single)) for where in WHERE}
    tasks = list(dict.fromkeys(one.settings["task"] for one in done))
    grids = [
        _grid(task, where, own)
        for task in tasks for where in WHERE
        if (own := [one for one in cells[where] if one.record.has(task=task)])
    ]  # fmt: skip
    findings = [
        text
        for where in WHERE
        if cells[where]
        for text in (*_claims(cells[where], where, 2 * means), *_theory(cells[where], where))
    ]
    findings.insert(
        0,
        f"Intervals are corrected by Bonferroni: half of the 5 % over {means} means over cells, which the claims are "
        f"about, the other over {single} ratios of single cells.",
    )
    findings += _never_reached(done)
    pictures = [_picture(cells, folder / "flatness.svg")] if any(cells.values()) else []
    return Section(findings=findings, grids=grids, pictures=pictures)


def cells_of(done: list[Record], where: str, comparisons: int = 1) -> list[ComparedFlatness]:
    """The cells at the tuned or the common learning rate, each beside the one with α = 0 of its task and base."""
    alone = {_base(one): one.found[where] for one in done if one.settings["alpha"] == 0.0}
    cells = []
    for one in done:
        found, base = one.found[where], alone.get(_base(one))
        if found is None or base is None:
            continue
        names = ("steps", "sharpness", "normalised", "gradient")
        eta = one.found["lr"] or math.nan if where == "tuned" else one.settings["common"]
        compared = {name: ratios(found[name], base[name], comparisons) for name in names}
        cells.append(ComparedFlatness(one, found, base, eta, compared))
    return cells


def _base(one: Record) -> tuple[str, str]:
    return one.settings["task"], one.settings["base"]


def _grid(task: str, where: str, cells: list[ComparedFlatness]) -> Grid:
    head = (
        "base; α, β1", "S", "limit of ηλ", "η", "steps", "steps / without E", "λ_max", "λ_max / without E",
        "the same, layers normalised", "‖∇L‖² / without E", METRICS.get(task, "test metric"), "ηλ / limit",
    )  # fmt: skip
    rows = []
    for one in cells:
        known = one.record.settings
        compared = ["" if known["alpha"] == 0.0 or pair is None else str(pair) for pair in one.compared.values()]
        rows.append((
            f"{NAMES[known['base']]}; {one.record.setting}", f"{one.record.strength:.3g}", f"{one.record.limit:.3g}",
            f"{one.eta:.3g}", over(one.found["steps"]), compared[0], over(one.found["sharpness"]), *compared[1:],
            over(one.found["test"]), over(one.found["share"]),
        ))  # fmt: skip
    known = cells[0].record.settings
    return Grid(
        f"{task}, to a training loss of {known['target']:g}, {WHERE[where]}: mean and half-width, or ratio with "
        f"limits, of 95 % over {known['seeds']} seeds",
        head, rows,
    )  # fmt: skip


def _claims(cells: list[ComparedFlatness], where: str, comparisons: int) -> list[str]:
    """Of each group the means over its cells, and what single cells decide."""
    said = []
    for with_momentum, sign, name, slower in GROUPS:
        own = [
            one for one in cells if one.alpha * sign > 0.0 and (one.record.settings["base"] != "gd") is with_momentum
        ]
        if not own:
            continue
        pace, place = ("slower", "flatter") if slower else ("faster", "sharper")
        never = sum(all(value is None for value in one.found["steps"]) for one in own)
        said.append(
            f"**{name} is {pace}, bases {'with' if with_momentum else 'without'} momentum, {WHERE[where]}** — "
            f"{_mean(own, 'steps', not slower, comparisons)}. **And {place}** — "
            f"{_mean(own, 'sharpness', slower, comparisons)}. Of {len(own)} cells by themselves "
            f"{_count(own, 'steps', ('faster', 'slower'))}; {_count(own, 'sharpness', ('flatter', 'sharper'))}."
            + (f" {never} did not reach the target." if never else "")
        )
    return said


def _mean(cells: list[ComparedFlatness], measure: str, below: bool, comparisons: int) -> str:
    """Whether a half of the claim, that a ratio is below 1 or above, holds in the mean over cells."""
    found, count = pooled([(one.found[measure], one.alone[measure]) for one in cells], comparisons)
    if found is None:
        return "not seen: no cell has it at every seed"
    agrees, opposed = (found.below, found.above) if below else (found.above, found.below)
    outcome = Outcome.BETTER if agrees else Outcome.WORSE if opposed else Outcome.UNDECIDED
    what = {"steps": "steps", "sharpness": "λ_max"}[measure]
    return f"{marked(outcome)}: {what} times {found}, mean over {count} cells"


def _count(cells: list[ComparedFlatness], measure: str, words: tuple[str, str]) -> str:
    below, above = (sum(one.decided(measure, side) for one in cells) for side in (True, False))
    return f"{below} {'is' if below == 1 else 'are'} {words[0]} and {above} {words[1]}"


def _theory(cells: list[ComparedFlatness], where: str) -> list[str]:
    """Whether S, or the limit over η, orders sharpness within each task and base, and sharpness the test metric."""
    said = []
    predictors: tuple[tuple[Callable[[ComparedFlatness], float | None], str], ...] = (
        (lambda one: -one.record.strength, "−S"),
        (lambda one: one.record.limit / one.eta, "limit / η"),
        (lambda one: _average(one.found["test"]), "the test metric"),
    )
    for predict, words in predictors:
        found = []
        for key in dict.fromkeys(_base(one.record) for one in cells):
            own = [one for one in cells if _base(one.record) == key]
            pairs = [(predict(one), _average(one.found["sharpness"])) for one in own]
            pairs = [pair for pair in pairs if None not in pair]
            if len(pairs) >= 4:
                found.append(f"{key[0]} {NAMES[key[1]]} {spearmanr(pairs).statistic:.2f}")
        if found:
            said.append(f"Rank correlation of λ_max with {words}, {WHERE[where]}: {', '.join(found)}.")
    shares = [value for one in cells for value in one.found["share"] if value is not None]
    if shares:
        near = sum(value > 0.7 for value in shares)
        said.append(
            f"Where the target is reached, {WHERE[where]}, ηλ is above .7 of its limit in {near} of {len(shares)} "
            "runs: these are at the edge of stability, the others below it."
        )
    return said


def _never_reached(done: list[Record]) -> list[str]:
    """The cells that no learning rate took to the target."""
    lost = [
        f"{one.settings['task']}, {NAMES[one.settings['base']]}, {one.setting}"
        for one in done if one.found["lr"] is None
    ]  # fmt: skip
    if not lost:
        return []
    return [f"No learning rate that was tried reached the target within the steps allowed for: {'; '.join(lost)}."]


def _average(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there else None


def _picture(cells: dict[str, list[ComparedFlatness]], path: Path) -> Picture:
    shown = {where: [one for one in own if one.alpha != 0.0] for where, own in cells.items()}
    bases = [base for base in NAMES if any(one.record.has(base=base) for own in shown.values() for one in own)]
    rows = [where for where in WHERE if shown[where]]
    drawn = drawing.figure(2.5 * len(bases) + 0.5, 2.5 * len(rows) + 0.8)
    panels = drawn.subplots(len(rows), len(bases), sharex=True, sharey=True, squeeze=False)
    for line, where in zip(panels, rows, strict=True):
        for ax, base in zip(line, bases, strict=True):
            _quadrants(ax, [one for one in shown[where] if one.record.has(base=base)])
        line[0].set_ylabel(f"{WHERE[where]}\nλ_max / without E", fontsize=9)
    for ax, base in zip(panels[0], bases, strict=True):
        ax.set_title(NAMES[base], fontsize=11)
    for ax in panels[-1]:
        ax.set_xlabel("steps / without E", fontsize=9)
    drawing.legend(drawn, "outside lower center", columns=6)
    return Picture(
        drawing.save(drawn, path),
        "A panel a base, a point a task and an (α, β1), geometric means over seeds, bars 95 %: steps to the target and "
        "the largest eigenvalue there, both divided by those of the base without E. Blue α < 0, orange α > 0; pale: "
        "not decided in both. The slides' claim is blue in the lower right and orange in the upper left.",
    )


def _quadrants(ax: Axes, cells: list[ComparedFlatness]) -> None:
    ax.axhline(1.0, color=palette.INK, lw=0.8)
    ax.axvline(1.0, color=palette.INK, lw=0.8)
    ax.set(xscale="log", yscale="log", xlim=(0.36, 9.5), ylim=(0.22, 6.5))
    for axis in (ax.xaxis, ax.yaxis):
        drawing.ticks(axis, (0.5, 1, 2, 4, 8) if axis is ax.xaxis else (0.25, 0.5, 1, 2, 4))
    for one in cells:
        pace, place = one.compared["steps"], one.compared["sharpness"]
        if pace is None or place is None:
            continue
        task = one.record.settings["task"]
        label = f"{task}, α {'<' if one.alpha < 0.0 else '>'} 0"
        sure = all(each.above or each.below for each in (pace, place))
        ax.errorbar(
            pace.mean, place.mean, xerr=bars([pace]), yerr=bars([place]), fmt=MARKERS.get(task, "D"),
            color=palette.of_alpha(one.alpha), alpha=1.0 if sure else 0.45, markersize=5, elinewidth=0.7,
            markeredgewidth=0, zorder=3 if sure else 2,
        )  # fmt: skip
        if label not in ax.get_legend_handles_labels()[1]:
            ax.plot([], [], MARKERS.get(task, "D"), color=palette.of_alpha(one.alpha), markersize=5, label=label)
    corner: dict[str, Any] = {"transform": ax.transAxes, "fontsize": 7, "color": palette.INK}
    ax.text(0.98, 0.02, "slower, flatter", ha="right", **corner)
    ax.text(0.02, 0.94, "faster, sharper", ha="left", **corner)
    ax.text(0.98, 0.94, "slower, sharper", ha="right", **corner)
    ax.text(0.02, 0.02, "faster, flatter", ha="left", **corner)
