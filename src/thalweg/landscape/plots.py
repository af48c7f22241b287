"""Pictures of valleys and of walks along them, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.colors import to_rgb

from thalweg.landscape.functions import Landscape
from thalweg.landscape.walks import Walk
from thalweg.report import drawing
from thalweg.report.palette import AMBER, INK, of_alpha

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WALLS = "#3f8f86"
"""Of the valley's walls: the higher, the less of the page shows through."""
NAMES = {"sgd": "SGD", "adam": "Adam", "lamb": "LAMB"}


def walks_picture(rows: Sequence[Sequence[Walk]], path: Path, *, shown: int = 1, width: float = 2.6) -> Path:
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
    path.parent.mkdir(parents=True, exist_ok=True)
    return drawing.save(drawn, path, dpi=100)


def _height(function: Landscape) -> float:
    """Of a picture of it, in its widths."""
    (x0, x1), (y0, y1) = function.bounds
    return (y1 - y0) / (x1 - x0)


def draw_walk(ax: Axes, walk: Walk, shown: int = 1, linewidth: float = 1.5) -> None:
    """Some walkers, with a ring where the first starts and a dot where each ends."""
    colour = of_alpha(walk.alpha) if walk.alpha else INK
    for walker in range(min(shown, walk.places.shape[1])):
        x, y = walk.places[:, walker].T.numpy()
        ax.plot(x, y, color=colour, linewidth=linewidth, solid_joinstyle="round", zorder=4)
        ax.plot(x[-1:], y[-1:], "o", color=colour, markersize=5 + linewidth, zorder=6)
    ax.plot(*walk.places[0, 0].tolist(), "o", color=colour, markerfacecolor="none", markeredgewidth=1.2 + linewidth / 3,
            markersize=6 + linewidth, zorder=6)  # fmt: skip
    who = NAMES[walk.base]
    title = f"E({who}), α = {walk.alpha:g}, β1 = {walk.beta:g}" if walk.alpha else f"{who} alone"
    ax.set_title(title, fontsize=10, color=colour, fontweight="bold")


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
