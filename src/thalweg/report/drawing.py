"""What the pictures share: colours that colour-blind readers can tell apart (Okabe and Ito), axes, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib
from matplotlib.figure import Figure

from thalweg import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axis import Axis

BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
BLACK, GREY = "#000000", "#777777"
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
BROWN, OLIVE, MAGENTA = "#8a5a40", "#77772a", "#aa4499"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, BLACK, BROWN, OLIVE, MAGENTA)
matplotlib.rcParams["svg.hashsalt"] = "thalweg"  # the same picture is the same file


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def legend(drawn: Figure, place: Literal["outside upper center", "outside lower center"], columns: int) -> None:
    """One legend of all axes of a figure, each label once."""
    handles = {label: h for ax in drawn.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        drawn.legend(handles.values(), handles, loc=place, ncols=columns, fontsize=8)


def save(drawn: Figure, path: Path) -> Path:
    """Write a picture in the format that the file's name says."""
    with files.written(path) as beside:
        if path.suffix == ".svg":
            drawn.savefig(beside, format="svg", metadata={"Date": None})
        else:
            drawn.savefig(beside, dpi=110)
    return path


def ticks(axis: Axis, values: Sequence[float]) -> None:
    """Ticks at these values alone, each labelled."""
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)
