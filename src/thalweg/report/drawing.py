"""What the pictures share: axes that read on light and dark pages, whose ground shows through, and files."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Literal

import matplotlib
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image

from thalweg import files
from thalweg.report.palette import INK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axis import Axis

matplotlib.rcParams["svg.hashsalt"] = "thalweg"  # the same picture is the same file


def figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, whose parts make room for each other."""
    return Figure(figsize=(width, height), layout="constrained")


def legend(drawn: Figure, place: Literal["outside upper center", "outside lower center"], columns: int) -> None:
    """One legend of all axes of a figure, each label once."""
    handles = {label: h for ax in drawn.axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        drawn.legend(handles.values(), handles, loc=place, ncols=columns, fontsize=8)


def save(drawn: Figure, path: Path, dpi: int = 110) -> Path:
    """Write a picture in the format that the file's name says, transparent, for light and dark pages."""
    for_any_page(drawn)
    with files.written(path) as beside:
        if path.suffix == ".svg":
            text = io.StringIO()
            drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            beside.write_text(_shorter(text.getvalue()), encoding="utf-8")
        else:
            pixels = io.BytesIO()
            drawn.savefig(pixels, dpi=dpi, transparent=True)
            few = Image.open(pixels).quantize(256, method=Image.Quantize.FASTOCTREE)  # a third of the size
            few.save(beside, format="png", optimize=True)
    return path


def _shorter(svg: str) -> str:
    """Paths to a hundredth of a point, long ones to a tenth: a third of the size, and nobody sees it."""

    def path(found: re.Match[str]) -> str:
        whole = found.group()
        digits = r"(\.\d)\d+" if len(whole) > 2000 else r"(\.\d\d)\d+"
        return re.sub(r"\s+", " ", re.sub(r"\s*([MLQCZ])\s*", r"\1", re.sub(digits, r"\1", whole)))

    return re.sub(r'(?<= )d="[^"]*"', path, svg)


def for_any_page(drawn: Figure) -> None:
    """Paint what matplotlib left black, and its white boxes, so that both read on light and dark pages."""
    for text in drawn.findobj(Text):
        if same_color(text.get_color(), "black"):
            text.set_color(INK)
    for one in drawn.findobj(Legend):
        one.get_frame().set(facecolor="none", edgecolor="none")
    for ax in drawn.axes:
        ax.patch.set_alpha(0.0)
        ax.tick_params(which="both", color=INK, labelcolor=INK)
        for spine in ax.spines.values():
            spine.set_edgecolor(INK)


def ticks(axis: Axis, values: Sequence[float]) -> None:
    """Ticks at these values alone, each labelled."""
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_ticks([], minor=True)
