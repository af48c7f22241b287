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

from thalweg.theory import implicit_regularization, stability_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "theory"
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#777777"
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
    """Sharpness over the predicted limit, at the edge; and over S, below the edge and at it."""
    figure, axes = _figure((10.5, 4.2), 2)
    left, right = axes
    for momentum, colour, marker in ((0.0, BLUE, "o"), (0.9, ORANGE, "^")):
        label = f"momentum {momentum:g}" if momentum else "no momentum"
        for key, cell in _cells(record, "limits", momentum=momentum):
            _, eta, _, alpha, beta = key
            at = stability_limit(alpha, beta, momentum=momentum) / eta
            mean, half = interval(cell["sharpness"])
            left.errorbar(at, mean, half, fmt=marker, color=colour, label=label, capsize=2)
            left.annotate(_name(alpha, beta), (at, mean), (5, -9), textcoords="offset points", fontsize=6.5)
            label = None
    left.plot([3, 50], [3, 50], color=GREY, linewidth=0.8)
    left.set(xscale="log", yscale="log")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(FixedLocator([5, 10, 20, 40]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))
    left.set(xlabel="stability limit over η", ylabel="sharpness, mean of steps 2,000 to 3,000")
    left.set_title("At the edge: sharpness sits at the limit", fontsize=10)
    left.legend(fontsize=8, loc="upper left")
    for eta, colour, marker in ((0.1, GREEN, "s"), (0.4, PURPLE, "D")):
        label = f"η = {eta:g}, {'below' if eta == 0.1 else 'at'} the edge"
        for key, cell in _cells(record, "levels", eta=eta, momentum=0.0):
            alpha, beta = key[3:]
            if None in cell["sharpness"][-1]:
                continue
            mean, half = interval(cell["sharpness"][-1])
            strength = implicit_regularization(alpha)
            right.errorbar(strength, mean, half, fmt=marker, color=colour, label=label, capsize=2)
            if eta == 0.4:
                right.annotate(_name(alpha, beta), (strength, mean), (5, -9), textcoords="offset points", fontsize=6.5)
            label = None
    right.set_xscale("symlog", linthresh=5)
    right.xaxis.set_major_locator(FixedLocator([-7, -3, 0, 3, 11, 17, 40, 81]))
    right.xaxis.set_minor_locator(NullLocator())
    right.xaxis.set_major_formatter(FuncFormatter(_plain))
    right.set(
        ylim=(0, None), xlabel="S, penalty on the gradient norm (no momentum)", ylabel="sharpness at training loss 0.15"
    )
    right.set_title("Below the edge S lowers it, at the edge the limit rules", fontsize=10)
    right.legend(fontsize=8, loc="center right")
    return figure


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
        ax.set_xscale("symlog", linthresh=2)
        ax.xaxis.set_major_locator(FixedLocator([-30, -10, -4, -2, -1, 0, 1, 2, 4, 10]))
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


def _name(alpha: float, beta: float) -> str:
    return "none" if alpha == 0.0 else f"{alpha:g}, {beta:g}"


def _figure(size: tuple[float, float], columns: int, *, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, sharey=sharey)


def _plain(value: float, _: object = None) -> str:
    return f"{value:g}"


if __name__ == "__main__":
    main()
