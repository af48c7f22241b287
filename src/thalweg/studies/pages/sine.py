"""Flatness where Adam first reaches a loss, on the noisy sine: what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thalweg.report import drawing, palette
from thalweg.report.words import corrected, listed
from thalweg.studies.pages.numbers import over, ratios
from thalweg.studies.pages.settings import Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from pathlib import Path

MEASURES = ("steps", "loss", "test", "sharpness", "normalised", "trace", "increase", "gradient")


def page(folder: Path) -> Section:
    """Steps and flatness of each batch size and setting; the surfaces side by side."""
    done = finished(folder)
    pictures = (_picture(done, folder / "surface.png"),) if any(one.found["surface"] for one in done) else ()
    return Section(findings=_findings(done), grids=[_grid(done)], pictures=pictures)


def _grid(done: list[Record]) -> Grid:
    head = (
        "batch; α, β1", "η", "steps", "training loss", "test loss", "λ_max", "λ_max, filters normalised", "trace",
        "rise at 10 %", "‖∇L‖²",
    )  # fmt: skip
    rows = [
        (
            f"{one.settings['batch']}; {one.setting}",
            f"{one.settings['lr']:g}", over(one.found["steps"]), over(one.found["loss"], 4), over(one.found["test"]),
            *(over(one.found[name]) for name in MEASURES[3:]),
        )
        for one in done
    ]  # fmt: skip
    return Grid(
        f"Adam, mean and half-width of the 95 % interval over {done[0].settings['seeds']} seeds, where the training "
        f"loss first is at {done[0].settings['target']:g}",
        head, rows,
    )  # fmt: skip


def _findings(done: list[Record]) -> list[str]:
    sizes = sorted({one.settings["batch"] for one in done})
    alone = {one.settings["batch"]: one for one in done if one.settings["alpha"] == 0.0}
    names = {"sharpness": "λ_max", "normalised": "λ_max with filters normalised", "trace": "the trace"}
    beside = sum(one.settings["alpha"] != 0.0 for one in done)
    comparisons = max(1, len(names) * (len(sizes) > 1) + (len(names) + 1) * beside)
    said = [f"Ratios: {corrected(comparisons)}"]
    if len(sizes) > 1:
        low, high = alone[sizes[0]], alone[sizes[-1]]
        losses = [np.mean([loss for loss in one.found["loss"] if loss is not None]) for one in (low, high)]
        said.append(
            f"**Batch {sizes[-1]} against batch {sizes[0]}, Adam alone, where the training loss is first seen at most "
            f"{low.settings['target']:g}** (means {losses[1]:.3g} and {losses[0]:.3g}), the ratio over seeds with its "
            f"95 % interval: {_between(high, low, names, comparisons)} Above 1 is sharper at the large batch, as in "
            "the slides' picture."
        )
    for one in done:
        if one.settings["alpha"] == 0.0:
            continue
        base = alone[one.settings["batch"]]
        said.append(
            f"**Batch {one.settings['batch']}, α, β1 = {one.setting} against Adam alone**: "
            f"{_between(one, base, {**names, 'steps': 'steps'}, comparisons)}"
        )
    return said


def _between(a: Record, b: Record, names: dict[str, str], comparisons: int) -> str:
    """The ratios of what is measured, and which of them are decided."""
    found = {words: ratios(a.found[name], b.found[name], comparisons) for name, words in names.items()}
    known = [one.pairs for one in found.values() if one is not None]
    text = "; ".join(f"{words} {'unknown' if one is None else one}" for words, one in found.items())
    if known and min(known) < len(a.found["steps"]):
        text += f"; {min(known)} of {len(a.found['steps'])} seeds"
    apart = [words for words, one in found.items() if one is not None and (one.above or one.below)]
    return f"{text}. {f'Decided: {listed(apart)}.' if apart else 'None is decided.'}"


def _picture(done: list[Record], path: Path) -> Picture:
    shown = [one for one in done if one.found["surface"]]
    sizes = sorted({one.settings["batch"] for one in shown})
    columns = list(dict.fromkeys(one.setting for one in shown))
    drawn = drawing.figure(3.3 * len(columns) + 0.8, 3.0 * len(sizes))
    panels = drawn.subplots(len(sizes), len(columns), squeeze=False, sharex=True, sharey=True)
    surfaces = [np.array(one.found["surface"]) for one in shown]
    levels = np.geomspace(min(each.min() for each in surfaces), 1.0, 13)
    for one, losses in zip(shown, surfaces, strict=True):
        ax = panels[sizes.index(one.settings["batch"])][columns.index(one.setting)]
        x = np.linspace(-1.0, 1.0, len(losses)) * one.settings["extent"]
        image = ax.contourf(x, x, losses.T, levels=levels, cmap="cividis", norm="log", extend="max")
        inside = ax.contour(x, x, losses.T, levels=[0.1], colors="white", linewidths=1.2)
        ax.clabel(inside, fmt="%g", fontsize=7)
        ax.plot(0, 0, "+", color=palette.ORANGE, markersize=8)
        ax.set_title(f"batch {one.settings['batch']}, {one.setting}", fontsize=10)
    bar = drawn.colorbar(image, ax=panels, label="training loss", format="%.2g")
    bar.ax.minorticks_off()
    drawn.supxlabel("first random direction, filters normalised", fontsize=9)
    drawn.supylabel("second random direction", fontsize=9)
    return Picture(
        drawing.save(drawn, path),
        "The loss around Adam's solution (the cross) along two random directions with filters normalised, first seed; "
        "rows are batch sizes, columns E in front. A wider dark basin is a flatter place: compare the white line, "
        "where the loss is 0.1.",
    )
