"""The pictures of measurements on docs/what-e-does.md and docs/which-alpha.md, from the records in benchmarks/results.

python docs/figures/measured.py --machine epyc-9004-2-cores

These records are of scripts that the recipes two-mechanisms, edge-of-stability and which-alpha have replaced.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FixedLocator, NullLocator

from thalweg.report import drawing, palette
from thalweg.report.statistics import interval
from thalweg.studies.pages import two_mechanisms, which_alpha
from thalweg.studies.pages.numbers import PLAIN
from thalweg.studies.pages.settings import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "images" / "theory"
REGIMES = {
    "large": "large batch, 60 epochs",
    "short": "large batch, 10 epochs",
    "small": "small batch, 5 epochs",
    "zeroth": "without backpropagation",
}
BASES = {"SGD": "gd", "RMSprop": "rmsprop", "Adagrad": "adagrad", "SPSA + SGD": "spsa", "SGD, momentum .9": "momentum",
         "AdamW": "adamw", "LAMB": "lamb"}  # fmt: skip
TESTED = {"fashion": 10_000, "digits": 517}


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="epyc-9004-2-cores", help="that of the records")
    parser.add_argument("--data", choices=("fashion", "digits"), default="fashion", help="that of the records")
    options = parser.parse_args()
    for name, draw in (("two-mechanisms", of_two_mechanisms), ("which-alpha", of_which_alpha)):
        source = ROOT / "benchmarks" / "results" / f"{options.machine}-{name}-{options.data}.json"
        if not source.exists():
            raise SystemExit(f"error: {source} is not there; thalweg reproduce {name} measures, and draws, anew")
        path = OUT / f"{name.replace('-', '_')}.png"
        drawing.save(draw(json.loads(source.read_text())), path, dpi=120)
        print(f"written: {path}")


def of_two_mechanisms(record: dict[str, Any]) -> Figure:
    """Sharpness over the predicted limit; over S, below the edge; and over the limit again, on the way down."""
    figure = drawing.figure(13.0, 4.2)
    axes = figure.subplots(1, 3)
    settled, descending = [], []
    for key, cell in record["cells"].items():
        name, eta, momentum, alpha, beta = key.split("/")
        settings = {"base": "momentum" if float(momentum) else "gd", "lr": float(eta), "alpha": float(alpha),
                    "beta": float(beta), "levels": record["levels"]}  # fmt: skip
        (settled if name == "limits" else descending).append(Record(settings, cell))
    _settled(axes[0], settled)
    descents = two_mechanisms.descents_of(descending)
    two_mechanisms.draw_below(axes[1], descents)
    two_mechanisms.draw_at(axes[2], descents)
    return figure


def _settled(ax: Axes, records: list[Record]) -> None:
    for base, (colour, marker) in two_mechanisms.STYLES.items():
        label: str | None = two_mechanisms.NAMES[base]
        for one in records:
            if one.settings["base"] == base:
                at, found = two_mechanisms.threshold(one), interval(one.found["sharpness"], PLAIN)
                ax.errorbar(at, found.mean, found.reach[1], fmt=marker, color=colour, label=label, capsize=2)
                label = None
                if base == "momentum" and at < 5.0:  # where the iterates swing
                    where = (-10, -18) if one.settings["alpha"] < -1.0 else (0, 9)
                    ax.annotate(
                        one.setting, (at, found.mean), where, textcoords="offset points", fontsize=7, ha="center"
                    )
    ax.plot((3.0, 50.0), (3.0, 50.0), color=palette.INK, linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlim=(2.6, 55), xlabel="stability limit over η")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(FixedLocator([5, 10, 20, 40]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")
    ax.set(ylabel="sharpness, mean of steps 2,000 to 3,000")
    ax.set_title("It settles at the limit", fontsize=10)
    ax.legend(fontsize=8, loc="upper left")


def of_which_alpha(record: dict[str, Any]) -> Figure:
    """The paired difference of test accuracy to the base alone."""
    return which_alpha.draw(which_alpha.cells_of(records_of(record)))


def records_of(record: dict[str, Any]) -> list[Record]:
    """Of the former which_alpha.py, as the recipe has them."""
    records = []
    for key, cell in record["cells"].items():
        regime, base, pair = key.split("/")
        alpha, beta = map(float, pair.split(","))
        settings = {"regime": REGIMES[regime], "base": BASES[base], "alpha": alpha, "beta": beta}
        records.append(Record(settings, {**cell, "tested": TESTED[record["data"]]}))
    return records


if __name__ == "__main__":
    main()
