"""The pictures of measurements on docs/what-e-does.md and docs/which-alpha.md, from the records in benchmarks/results.

python docs/figures/measured.py --machine epyc-9004-2-cores
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.stats import t as student

from thalweg.report.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from thalweg.theory import implicit_regularization, stability_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "theory"
REGIMES = {
    "large": "large batch, 60 epochs",
    "short": "large batch, 10 epochs",
    "small": "small batch, 5 epochs",
    "zeroth": "without backpropagation",
}
BASES = {
    "SGD": (BLUE, "o"),
    "RMSprop": (SKY, "s"),
    "Adagrad": (GREEN, "D"),
    "SPSA + SGD": (GREY, "P"),
    "SGD, momentum .9": (ORANGE, "^"),
    "AdamW": (PURPLE, "v"),
    "LAMB": ("black", "X"),
}


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="unnamed", help="that of the records")
    parser.add_argument("--data", choices=("fashion", "digits"), default="fashion", help="that of the records")
    options = parser.parse_args()
    for name, draw in (("two-mechanisms", two_mechanisms), ("which-alpha", which_alpha)):
        source = ROOT / "benchmarks" / "results" / f"{options.machine}-{name}-{options.data}.json"
        if not source.exists():
            raise SystemExit(f"error: {source} is not there: run benchmarks/{name.replace('-', '_')}.py")
        path = OUT / f"{name.replace('-', '_')}.png"
        draw(json.loads(source.read_text())).savefig(path, dpi=120, facecolor="white")
        print(f"written: {path}")


def two_mechanisms(record: dict[str, Any]) -> Figure:
    """Sharpness over the predicted limit; over S, below the edge; and over the limit again, on the way down."""
    figure, axes = _figure((13, 4.2), 3)
    _settled(axes[0], record)
    _below(axes[1], record)
    _at(axes[2], record)
    return figure


def _settled(ax: Axes, record: dict[str, Any]) -> None:
    for momentum, colour, marker in ((0.0, BLUE, "o"), (0.9, ORANGE, "^")):
        label: str | None = f"momentum {momentum:g}" if momentum else "no momentum"
        for (_, eta, _, alpha, beta), cell in _cells(record, "limits", momentum=momentum):
            at = stability_limit(alpha, beta, momentum=momentum) / eta
            ax.errorbar(at, *interval(cell["sharpness"]), fmt=marker, color=colour, label=label, capsize=2)
            label = None
            if momentum and at < 5.0:  # where the iterates swing
                mean, _ = interval(cell["sharpness"])
                where = (-10, -18) if alpha < -1.0 else (0, 9)
                ax.annotate(
                    f"{alpha:g}, {beta:g}", (at, mean), where, textcoords="offset points", fontsize=7, ha="center"
                )
    _diagonal(ax, (3.0, 50.0))
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([5, 10, 20, 40]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))
    ax.set(xlim=(2.6, 55), xlabel="stability limit over η", ylabel="sharpness, mean of steps 2,000 to 3,000")
    ax.set_title("At the edge: it settles at the limit", fontsize=10)
    ax.legend(fontsize=8, loc="upper left")


def _below(ax: Axes, record: dict[str, Any]) -> None:
    for momentum, colour, marker in ((0.0, BLUE, "o"), (0.9, ORANGE, "^")):
        label: str | None = f"momentum {momentum:g}" if momentum else "no momentum"
        cells = _cells(record, "levels", eta=0.1, momentum=momentum)
        alone = next(cell for key, cell in cells if key[3] == 0.0)["sharpness"][0]
        for (_, _, _, alpha, _), cell in cells:
            more = [100.0 * (mine / base - 1.0) for mine, base in zip(cell["sharpness"][0], alone, strict=True)]
            strength = implicit_regularization(alpha, momentum=momentum)
            ax.errorbar(strength, *interval(more), fmt=marker, color=colour, label=label, capsize=2)
            label = None
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    ax.set(xlabel="S", ylabel="sharpness at loss 0.5, to that without E, %")
    ax.set_title("Below the edge (η = 0.1): S orders it, by per cents", fontsize=10)
    ax.legend(fontsize=8)


def _at(ax: Axes, record: dict[str, Any]) -> None:
    alone = next(cell for key, cell in _cells(record, "levels", eta=0.1, momentum=0.0) if key[3] == 0.0)
    for (_, eta, _, alpha, beta), cell in _cells(record, "levels", eta=0.8, momentum=0.0):
        at = stability_limit(alpha, beta) / eta
        mean, half = interval(cell["sharpness"][-1])
        ax.errorbar(at, mean, half, fmt="o", color=BLUE, capsize=2)
        name = "none" if alpha == 0.0 else f"{alpha:g}, {beta:g}"
        ax.annotate(name, (at, mean), (7, -9), textcoords="offset points", fontsize=7)
    _diagonal(ax, (1.0, 9.0))
    ax.axhline(
        interval(alone["sharpness"][-1])[0], color=GREEN, linewidth=1.0, linestyle="--", label="at η = 0.1, without E"
    )
    ax.set(xlim=(0, 18.5), ylim=(0, 9), xlabel="stability limit over η", ylabel="sharpness at training loss 0.15")
    ax.set_title("η = 0.8: the limit rules, by factors", fontsize=10)
    ax.legend(fontsize=8, loc="lower right")


def _diagonal(ax: Axes, ends: tuple[float, float]) -> None:
    ax.plot(ends, ends, color=GREY, linewidth=0.8)


def which_alpha(record: dict[str, Any]) -> Figure:
    """The paired difference of test accuracy to the base alone."""
    shown = [regime for regime in REGIMES if any(key.startswith(f"{regime}/") for key in record["cells"])]
    figure, axes = _figure((11, 4.8), len(shown), sharey=True)
    settings = list(dict.fromkeys(key.split("/")[2] for key in record["cells"] if not key.endswith("/0,0")))
    for ax, regime in zip(axes, shown, strict=True):
        bases = [name for name in BASES if f"{regime}/{name}/0,0" in record["cells"]]
        for i, name in enumerate(bases):
            alone = record["cells"][f"{regime}/{name}/0,0"]["test"]
            colour, marker = BASES[name]
            for j, setting in enumerate(settings):
                cell = record["cells"][f"{regime}/{name}/{setting}"]
                mean, half = interval([mine - base for mine, base in zip(cell["test"], alone, strict=True)])
                y = j + (i - (len(bases) - 1) / 2) * 0.11
                label = name if j == 0 else None
                ax.errorbar(mean, y, xerr=half, fmt=marker, color=colour, label=label, markersize=4.5, capsize=1.5)
        ax.axvline(0.0, color=GREY, linewidth=0.8)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim((-16, 5) if regime != "zeroth" else (-2, 2))
        ax.xaxis.set_major_locator(FixedLocator([-12, -6, -3, -1, 0, 1, 3]))
        ax.xaxis.set_major_formatter(FuncFormatter(_plain))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(REGIMES[regime], fontsize=10)
        ax.set_yticks(range(len(settings)), [f"α = {s.replace(',', chr(10) + 'β1 = ')}" for s in settings])
        ax.grid(axis="y", linewidth=0.3)
    axes[0].invert_yaxis()
    figure.supxlabel("test accuracy minus that of the base alone, points (8 seeds, paired, 95 %)", fontsize=9)
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), fontsize=8)
    return figure


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half-width of the 95 % confidence interval by Student's t."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, float(student.ppf(0.975, n - 1)) * (variance / n) ** 0.5


def _cells(record: dict[str, Any], experiment: str, **wanted: float) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    found = []
    for text, cell in record["cells"].items():
        name, *numbers = text.split("/")
        key = (name, *map(float, numbers))
        have = dict(zip(("eta", "momentum"), key[1:3], strict=True))
        if name == experiment and all(have[one] == value for one, value in wanted.items()):
            found.append((key, cell))
    return found


def _figure(size: tuple[float, float], columns: int, *, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, sharey=sharey)


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


if __name__ == "__main__":
    main()
