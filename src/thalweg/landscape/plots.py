"""Pictures of valleys, walks, slices and paths, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from thalweg import files
from thalweg.landscape.density import SpectralDensity
from thalweg.landscape.functions import Landscape
from thalweg.landscape.paths import Path
from thalweg.landscape.slices import Slice
from thalweg.landscape.walks import Walk
from thalweg.report import drawing
from thalweg.report.palette import AMBER, BLUE, INK, ORANGE, SKY, VIOLET, line, of_alpha, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (4, 1, 1, 1, 1, 1)), "--", ":")
WITHOUT, EXPLORES, EXPLOITS = INK, (BLUE, SKY, VIOLET), (ORANGE, AMBER)
"""Of walks: without E, with α < 0 and with α > 0, the strongest first."""
WALLS = "#3f8f86"
"""Of the valley's walls: the higher, the less of the page shows through."""
NAMES = {"sgd": "SGD", "adam": "Adam", "lamb": "LAMB"}


def walks_picture(rows: Sequence[Sequence[Walk]], path: File, *, shown: int = 1, width: float = 2.6) -> File:
    """Walks, one a panel, named after what walks there: the same in a row of panels but for E's α.

    Args:
        rows: of each row of panels, its walks.
        path: of the picture: PNG or SVG.
        shown: how many walkers of each walk.
        width: of a panel, in inches.
    """
    tallest = max(_height(one.function) for walks in rows for one in walks)
    drawn = drawing.figure(width * max(map(len, rows)), (width * tallest + 0.35) * len(rows))
    panels = drawn.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for axes, walks in zip(panels, rows, strict=True):
        for ax, walk in zip(axes, walks, strict=False):
            draw_landscape(ax, walk.function)
            draw_walk(ax, walk, shown)
        for ax in axes[len(walks) :]:
            ax.set_visible(False)
    return _save(drawn, path)


def _height(function: Landscape) -> float:
    """Of a picture of it, in its widths."""
    (x0, x1), (y0, y1) = function.bounds
    return (y1 - y0) / (x1 - x0)


def draw_walk(ax: Axes, walk: Walk, shown: int = 1, linewidth: float = 1.5) -> None:
    """Some walkers, with a ring where the first starts and a dot where each ends."""
    colour = _colour(walk)
    for walker in range(min(shown, walk.places.shape[1])):
        x, y = walk.places[:, walker].T.numpy()
        ax.plot(x, y, color=colour, linewidth=linewidth, solid_joinstyle="round", zorder=4)
        ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=5 + linewidth, zorder=6)
    ax.plot(*walk.places[0, 0].tolist(), "o", color=colour, markerfacecolor="none", markeredgewidth=1.2 + linewidth / 3,
            markersize=6 + linewidth, zorder=6)  # fmt: skip
    who = NAMES[walk.base]
    ax.set_title(
        f"{who} alone" if walk.alpha == 0.0 else f"E({who}), {_setting(walk)}", fontsize=10,
        color=colour if walk.alpha else INK, fontweight="bold",
    )  # fmt: skip


def draw_landscape(ax: Axes, function: Landscape) -> None:
    """Contours, the valley's floor (dots) and the minima (a star; a cross where another is lower) of a function."""
    (x0, x1), (y0, y1) = function.bounds
    x, y = np.linspace(x0, x1, 81), np.linspace(y0, y1, 81)
    points = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1))
    height = function(points).numpy()
    levels = _levels(height)
    walls = [(*to_rgb(WALLS), alpha) for alpha in np.linspace(0.0, 0.6, len(levels) - 1)]
    ax.contourf(x, y, height, levels=levels, colors=walls, extend="neither")
    ax.contour(x, y, height, levels=levels[1:-1], colors=WALLS, linewidths=0.6, alpha=0.8)
    if function.valley is not None:
        ax.plot(*function.valley.points(401).T.numpy(), ":", color=INK, linewidth=2.2, zorder=3)
    best = min(m.value for m in function.minima)
    for m in () if function.level else function.minima:
        marker, size, order = ("*", 16, 7) if m.value <= best else ("X", 10, 5)
        ax.plot(m.x, m.y, marker, color=AMBER, markersize=size, markeredgewidth=0, zorder=order)
    ax.set(xlim=(x0, x1), ylim=(y0, y1), xticks=(), yticks=(), aspect="equal")


def _levels(height: np.ndarray, count: int = 9) -> np.ndarray:
    """Heights of contours that share out the picture: closer where more of it lies."""
    low, high = float(height.min()), float(height.max())
    shares = np.unique(np.quantile(height, np.linspace(0.0, 1.0, count + 1) ** 1.3)[1:-1])
    return np.array([low - 1e-9, *shares[shares > low], high + 1e-9])


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
    figure = drawing.figure(4.8, 4.3)
    ax = figure.subplots()
    if found.y is None:
        ax.plot(found.x.numpy(), found.losses.numpy(), "-o", color=BLUE, markersize=3)
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
    figure = drawing.figure(5.2, 3.9)
    ax = figure.subplots()
    for (name, one), style in zip(paths.items(), styles(paths).values(), strict=True):
        label = f"{name}: barrier {one.barrier:.3g}"
        ax.plot(one.t.numpy(), one.losses.numpy(), label=label, **line(name, style))
    ax.set(xlabel="from one solution (0) to the other (1)", ylabel="loss")
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return _save(figure, path)


def density_picture(found: dict[str, SpectralDensity], path: File, *, title: str = "") -> File:
    """Spectral densities, smoothed by a hundredth of their range, on a logarithmic axis."""
    figure = drawing.figure(5.2, 3.9)
    ax = figure.subplots()
    low = min(float(one.nodes.min()) for one in found.values())
    high = max(float(one.nodes.max()) for one in found.values())
    width = max(high - low, 1e-12) / 100.0
    grid = torch.linspace(low - 4 * width, high + 4 * width, 800, dtype=torch.float64)
    for (name, one), style in zip(found.items(), styles(found).values(), strict=True):
        share = one.density(grid, width).clamp(min=1e-12) * one.size
        ax.plot(grid.numpy(), share.numpy(), label=name, **line(name, style))
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


def _colour(walk: Walk) -> str:
    return WITHOUT if walk.alpha == 0.0 else of_alpha(walk.alpha)


def _setting(walk: Walk) -> str:
    return "α = 0 (no E)" if walk.alpha == 0.0 else f"α = {walk.alpha:g}, β1 = {walk.beta:g}"


def _save(figure: Figure, path: File) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    return drawing.save(figure, path, dpi=100)
