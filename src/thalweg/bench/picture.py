"""Pictures of the measurements, one panel for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, NullFormatter

from thalweg.report import drawing
from thalweg.report.palette import GREY, INK, SKY

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

Found: TypeAlias = dict[str, Any]

OURS, THEIRS, TEMPORARY = SKY, GREY, (*to_rgb(GREY), 0.35)
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def order(kind: str, candidates: dict[str, Found]) -> list[tuple[str, Found]]:
    """The candidates with the fastest, or the one that needs least memory, first."""

    def cost(row: tuple[str, Found]) -> float:
        return sum(_parts(row[1])) if kind == "memory" else float(row[1]["paired_ratio"]["median"])

    return sorted(candidates.items(), key=cost)


def draw(record: dict[str, Any], path: Path) -> Path:
    """Draw the picture of a record of ``thalweg bench`` as PNG."""
    models, kind = record["models"], record["kind"]
    heights = [1.1 + 0.25 * len(found["contenders"]) for found in models]
    figure = drawing.figure(9.0, sum(heights) + 0.4)
    panels = figure.subplots(len(models), 1, height_ratios=heights, squeeze=False)[:, 0]
    for ax, found in zip(panels, models, strict=True):
        rows = order(kind, found["contenders"])
        if kind == "memory":
            _bytes(ax, rows)
        else:
            _ratios(ax, rows, record["arguments"]["reference"], "CPU time" if kind == "sharded" else "time")
        title = f"{found['says']}: {found['parameters']:,} parameters in {found['tensors']} tensors"
        _dress(ax, rows, f"{title}, {found['ranks']:,} ranks" if kind == "sharded" else title)
    figure.supxlabel(_where(record), x=0.01, ha="left", fontsize=7, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    return drawing.save(figure, path, dpi=130)


def _ratios(ax: Axes, rows: list[tuple[str, Found]], reference: str, time: str) -> None:
    """Step times over the reference's, with milliseconds beside them."""
    for y, (name, one) in enumerate(rows):
        ratio, colour = one["paired_ratio"], _colour(one)
        ax.plot([ratio["low"], ratio["high"]], [y, y], color=colour, linewidth=3, alpha=0.5, solid_capstyle="butt")
        ax.plot(ratio["median"], y, "D" if name == reference else "o", color=colour, markersize=6)
        milliseconds = 1e3 * one["median_seconds"]["median"]
        text = f"{ratio['median']:.2f} ×   {milliseconds:{'.0f' if milliseconds >= 100 else '.3g'}} ms"
        ax.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.axvline(1.0, color=INK, linewidth=0.8, linestyle="--", zorder=0)
    low = min(one["paired_ratio"]["low"] for _, one in rows) / 1.15
    high = max(one["paired_ratio"]["high"] for _, one in rows) * 1.15
    ax.set_xscale("log")
    ax.set_xlim(min(low, 0.8), max(high, 2.3))
    ax.set_xticks([tick for tick in TICKS if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    says = dict(rows)[reference]["says"]
    ax.set_xlabel(
        f"{time} of a step over that of {says} (log scale): median and quartiles of the ratios within a round"
    )


def _bytes(ax: Axes, rows: list[tuple[str, Found]]) -> None:
    """The state and, on top of it, the peak of temporary memory."""
    for y, (_, one) in enumerate(rows):
        state, temporary = _parts(one)
        ax.barh(y, state, color=_colour(one), height=0.7)
        ax.barh(y, temporary, left=state, color=TEMPORARY, height=0.7)
        text = f"{state:.1f} + {temporary:.1f}"
        ax.annotate(text, (state + temporary, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_xlim(0, 1.15 * max(sum(_parts(one)) for _, one in rows))
    ax.set_xlabel("bytes per parameter: optimizer state (coloured) + peak of temporary memory in a step (pale)")


def _dress(ax: Axes, rows: list[tuple[str, Found]], title: str) -> None:
    ax.set_yticks(range(len(rows)), [one["says"] for _, one in rows], fontsize=8)
    for label, (_, one) in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if one["ours"] else "normal")
    ax.set_ylim(len(rows) - 0.3, -0.7)
    ax.set_title(title, loc="left", fontsize=10)
    ax.xaxis.label.set_fontsize(8)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=INK, alpha=0.3, linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _parts(one: Found) -> tuple[float, float]:
    return one["state_bytes_per_parameter"], one["peak_temporary_bytes_per_parameter"]


def _colour(one: Found) -> str:
    return OURS if one["ours"] else THEIRS


def _where(record: dict[str, Any]) -> str:
    """Where and when, in one line."""
    here, how = record["environment"], record["arguments"]
    on_cuda = how.get("device") == "cuda"
    machine = here["accelerators"] if on_cuda else f"{here['processor']}, threads: {here['threads']}"
    rounds = "" if record["kind"] == "memory" else f"{how['rounds']} rounds, "
    if record["kind"] == "sharded":
        rounds += "simulated ranks, " if how["backend"] == "fake" else "gloo, "
    cut = ", interrupted" if record["interrupted"] else ""
    when = f"{here['date'][:10]}, commit {here['commit']}{cut}"
    return f"teal, bold: thalweg's. {machine}; torch {here['torch']}; {how['dtype']}; {rounds}{when}"
