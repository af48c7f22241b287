"""Pictures of valleys, walks, slices and paths in Okabe and Ito's colours: colour-blind readers tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from thalweg import files
from thalweg.landscape.density import SpectralDensity
from thalweg.landscape.functions import Landscape
from thalweg.landscape.paths import Path
from thalweg.landscape.slices import Slice
from thalweg.landscape.walks import Walk
from thalweg.report.drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLOURS = (ORANGE, BLACK, BLUE, GREEN, PURPLE, YELLOW, SKY)
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (4, 1, 1, 1, 1, 1)), "--", ":")
WITHOUT, EXPLORES, EXPLOITS = BLACK, (BLUE, SKY, GREEN), (ORANGE, YELLOW)
"""Of walks: without E, with α < 0 and with α > 0, the strongest first; the minima's colour is none of them."""


def walks_picture(rows: Sequence[Sequence[Walk]], path: File, *, shown: int = 1) -> File:
    """Walks from one start on each function (a row of panels), one panel a base, one line a setting of E.

    Args:
        rows: of each function, its walks.
        path: of the PNG.
        shown: how many walkers of each setting.
    """
    bases = list(dict.fromkeys(walk.base for walk in rows[0]))
    figure = _figure(len(bases), len(rows), 3.3, 3.0)
    panels = figure.subplots(len(rows), len(bases), squeeze=False)
    for axes, walks in zip(panels, rows, strict=True):
        for ax, base in zip(axes, bases, strict=True):
            of_base = [walk for walk in walks if walk.base == base]
            draw_landscape(ax, of_base[0].function)
            for walk, (colour, dashes) in zip(of_base, _styles(of_base), strict=True):
                for walker in range(min(shown, walk.places.shape[1])):
                    x, y = walk.places[:, walker].T.numpy()
                    label = _setting(walk) if walker == 0 else None
                    ax.plot(x, y, color=colour, linestyle=dashes, linewidth=1.0, label=label, zorder=3)
                    ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=5, zorder=4)
            ax.plot(*of_base[0].places[0, 0].tolist(), "s", color="white", markeredgecolor="black", zorder=5)
            ax.set_title(f"{of_base[0].function.name}: {base.upper() if base != 'adam' else 'Adam'}", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return _save(figure, path)


def draw_landscape(ax: Axes, function: Landscape) -> None:
    """Contours, the valley's floor and the minima of a function."""
    (x0, x1), (y0, y1) = function.bounds
    x, y = np.linspace(x0, x1, 161), np.linspace(y0, y1, 161)
    points = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1))
    height = np.log10(function(points).clamp(min=1e-4).numpy())
    ax.contourf(x, y, height, levels=18, cmap="Greys", alpha=0.55)
    if function.valley is not None:
        ax.plot(*function.valley.points(401).T.numpy(), color="white", linewidth=2.5, alpha=0.9, zorder=2)
    best = min(m.value for m in function.minima)
    for m in () if function.level else function.minima:
        ax.plot(m.x, m.y, "*" if m.value <= best else "x", color=PURPLE, markersize=10, markeredgewidth=1.5, zorder=6)
    ax.set(xlim=(x0, x1), ylim=(y0, y1), xlabel="x", ylabel="y")
    ax.tick_params(labelsize=7)


def animation(walks: Sequence[Walk], path: File, *, frames: int = 60, per_second: int = 12) -> File:
    """The walks of one function and base as a GIF, all walkers, with the way they have come.

    Args:
        walks: one a setting of E.
        path: of the GIF.
        frames: at least 2, spread over the steps.
        per_second: of them.
    """
    from matplotlib.animation import PillowWriter

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    draw_landscape(ax, walks[0].function)
    steps = len(walks[0].places) - 1
    dots: list[Line2D] = []
    trails: list[Line2D] = []
    for walk, (colour, dashes) in zip(walks, _styles(walks), strict=True):
        trails += ax.plot([], [], color=colour, linestyle=dashes, linewidth=1.3, zorder=3)
        dots += ax.plot([], [], "o", color=colour, markersize=4, label=_setting(walk), zorder=4)
    ax.legend(loc="upper right", fontsize=7)
    writer = PillowWriter(fps=per_second)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written(path) as beside, writer.saving(figure, str(beside), dpi=72):
        for at in np.unique(np.linspace(0, steps, frames).round().astype(int)):
            for walk, dot, trail in zip(walks, dots, trails, strict=True):
                dot.set_data(*walk.places[at].T.numpy())
                trail.set_data(*walk.places[: at + 1, 0].T.numpy())
            ax.set_title(f"{walks[0].function.name}, {walks[0].base}: step {at}", fontsize=10)
            writer.grab_frame()
    return path


def slice_picture(found: Slice, path: File, *, labels: Sequence[str] = ("x", "y"), title: str = "") -> File:
    """The loss on a line, or its contours on a plane, with the solutions that span it."""
    figure = _figure(1, 1, 4.8, 4.0)
    ax = figure.subplots()
    if found.y is None:
        ax.plot(found.x.numpy(), found.losses.numpy(), "-o", color=COLOURS[2], markersize=3)
        ax.set(xlabel=labels[0], ylabel="loss")
    else:
        image = ax.contourf(found.x.numpy(), found.y.numpy(), found.losses.T.numpy(), levels=20, cmap="cividis")
        figure.colorbar(image, ax=ax, label="loss")
        ax.set(xlabel=labels[0], ylabel=labels[1], aspect="equal" if found.points is not None else "auto")
        if found.points is not None:
            for name, (x, y) in zip("ABC", found.points.tolist(), strict=True):
                ax.plot(x, y, "o", color="white", markeredgecolor="black")
                ax.annotate(name, (x, y), (5, 5), textcoords="offset points", color="white")
    ax.set_title(title, fontsize=10)
    return _save(figure, path)


def paths_picture(paths: dict[str, Path], path: File, *, title: str = "") -> File:
    """The loss along several paths between the same two solutions."""
    figure = _figure(1, 1, 5.2, 3.6)
    ax = figure.subplots()
    for k, (name, one) in enumerate(paths.items()):
        label = f"{name}: barrier {one.barrier:.3g}"
        ax.plot(one.t.numpy(), one.losses.numpy(), color=COLOURS[k % 7], linestyle=DASHES[k % 7], label=label)
    ax.set(xlabel="from one solution (0) to the other (1)", ylabel="loss")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return _save(figure, path)


def density_picture(found: dict[str, SpectralDensity], path: File, *, title: str = "") -> File:
    """Spectral densities, smoothed by a hundredth of their range, on a logarithmic axis."""
    figure = _figure(1, 1, 5.2, 3.6)
    ax = figure.subplots()
    low = min(float(one.nodes.min()) for one in found.values())
    high = max(float(one.nodes.max()) for one in found.values())
    width = max(high - low, 1e-12) / 100.0
    grid = torch.linspace(low - 4 * width, high + 4 * width, 800, dtype=torch.float64)
    for k, (name, one) in enumerate(found.items()):
        share = one.density(grid, width).clamp(min=1e-12) * one.size
        ax.plot(grid.numpy(), share.numpy(), color=COLOURS[k % 7], linestyle=DASHES[k % 7], label=name)
    ax.set(yscale="log", ylim=(1e-2, None), xlabel="eigenvalue of the Hessian", ylabel="eigenvalues per unit")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return _save(figure, path)


def _styles(walks: Sequence[Walk]) -> list[tuple[str, Any]]:
    """A colour for each walk by the sign of its α, and dashes."""
    found = []
    for k, walk in enumerate(walks):
        same = sorted({abs(other.alpha) for other in walks if other.alpha * walk.alpha > 0}, reverse=True)
        hues = (WITHOUT,) if walk.alpha == 0 else EXPLORES if walk.alpha < 0 else EXPLOITS
        found.append((hues[same.index(abs(walk.alpha)) % len(hues)] if same else WITHOUT, DASHES[k % len(DASHES)]))
    return found


def _setting(walk: Walk) -> str:
    return "α = 0 (no E)" if walk.alpha == 0.0 else f"α = {walk.alpha:g}, β1 = {walk.beta:g}"


def _figure(columns: int, rows: int, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: File) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written(path) as beside:
        figure.savefig(beside, dpi=100, facecolor="white")
    return path
