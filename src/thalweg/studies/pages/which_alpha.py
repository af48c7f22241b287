"""What each α and β1 adds to the test accuracy of a base, by batch and budget: what is said of it."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from thalweg.records.metric import Metric
from thalweg.report import drawing, palette
from thalweg.report import words as phrases
from thalweg.report.decisions import Outcome, Paired, correct
from thalweg.report.statistics import paired
from thalweg.studies.pages.numbers import over
from thalweg.studies.pages.settings import MOMENTUM, Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

ACCURACY = Metric("test accuracy", "max", "%", low=0.0, high=100.0, resolution=100.0)
NAMES = {"gd": "SGD", "rmsprop": "RMSprop", "adagrad": "Adagrad", "spsa": "SPSA + SGD", "momentum": "SGD, momentum .9",
         "adam": "Adam", "adamw": "AdamW", "lamb": "LAMB"}  # fmt: skip
COLOURS = map(palette.colour, ("sgd", *list(NAMES)[1:]))
STYLES = dict(zip(NAMES, zip(COLOURS, ("o", "^", "s", "D", "v", "P", "X", "*"), strict=True), strict=True))
TICKS = (-30, -12, -6, -3, -1, 0, 1, 3, 6, 12, 30)


class ComparedAccuracy(NamedTuple):
    """A setting of E, and its paired difference of test accuracy to the base alone; None of the base itself."""

    record: Record
    compared: Paired | None

    @property
    def name(self) -> str:
        """α and β1."""
        return self.record.setting


def page(folder: Path) -> Section:
    """Each regime in a table, and where a setting is better or worse beyond noise."""
    done = finished(folder)
    cells = cells_of(done)
    picture = Picture(
        drawing.save(draw(cells), folder / "which-alpha.svg"),
        "Test accuracy minus that of the base alone, in points, paired by seed, bars 95 %, corrected over all cells.",
    )
    regimes = dict.fromkeys(one.settings["regime"] for one in done)
    grids = [_grid([one for one in cells if one.record.has(regime=name)]) for name in regimes]
    return Section(findings=_findings(cells), grids=grids, pictures=[picture])


def cells_of(done: Sequence[Record]) -> list[ComparedAccuracy]:
    """Each record beside that of its base alone; p-values and intervals corrected over all of them."""
    alone = {_base(one): one for one in done if one.settings["alpha"] == 0.0}
    pairs = {}
    for at, one in enumerate(done):
        base = alone.get(_base(one))
        if base is not None and base is not one:
            ours, theirs = (dict(enumerate(each.found["test"])) for each in (one, base))
            pair = paired(ours, theirs, ACCURACY.over(one.found["tested"]))
            if pair is not None:
                pairs[str(at), "alone"] = pair
    corrected = correct(pairs, max(1, len(pairs)))
    return [ComparedAccuracy(one, corrected.get((str(at), "alone"))) for at, one in enumerate(done)]


def _base(one: Record) -> tuple[str, str]:
    return one.settings["regime"], one.settings["base"]


def _grid(cells: list[ComparedAccuracy]) -> Grid:
    known = cells[0].record.settings
    names = list(dict.fromkeys(cell.name for cell in cells))
    rows = []
    for base in dict.fromkeys(cell.record.settings["base"] for cell in cells):
        own = {cell.name: _entry(cell) for cell in cells if cell.record.has(base=base)}
        rows.append((NAMES[base], *(own.get(name, "") for name in names)))
    title = (
        f"{known['task']}, {known['regime']} (batch {known['batch']} of {known['examples']}, {known['steps']} steps): "
        f"test accuracy in per cent without E, and what each α, β1 adds to it, ± 95 %, {known['seeds']} "
        "seeds (training loss; learning rate)"
    )
    return Grid(title, ("base", *names), rows)


def _entry(cell: ComparedAccuracy) -> str:
    found = cell.record.found
    losses = [loss for loss in found["loss"] if loss is not None]
    loss = f"{mean(losses):.3f}" if len(losses) == len(found["loss"]) else "diverged"
    if cell.compared is None:
        shown = over(found["test"])
    else:
        shown = f"{cell.compared.difference:+.1f} ± {cell.compared.high - cell.compared.difference:.1f}"
    return f"{shown} ({loss}; {found['lr']:.2g})"


def _findings(cells: list[ComparedAccuracy]) -> list[str]:
    count = sum(cell.compared is not None for cell in cells)
    said = [f"Cells: {phrases.corrected(count)}"] if count else []
    for without, words in ((True, "without momentum"), (False, "with momentum")):
        for name in dict.fromkeys(cell.name for cell in cells if cell.compared is not None):
            own = [
                cell.compared for cell in cells
                if cell.name == name and (MOMENTUM[cell.record.settings["base"]] == 0.0) is without
                and cell.compared is not None
            ]  # fmt: skip
            if own:
                verdicts = [one.verdict for one in own]
                least, most = (pick(one.difference for one in own) for pick in (min, max))
                said.append(
                    f"**{name}, bases {words}**: better than the base alone in {verdicts.count(Outcome.BETTER)} of "
                    f"{len(own)} cells, worse in {verdicts.count(Outcome.WORSE)}, equivalent within "
                    f"{phrases.amount(own[0].margin or 0.0, ACCURACY)} in {verdicts.count(Outcome.EQUIVALENT)}; means "
                    f"from {least:+.1f} to {most:+.1f} points."
                )
    return said


def draw(cells: Sequence[ComparedAccuracy]) -> Figure:
    """The paired difference of test accuracy to the base alone, a panel for each regime."""
    compared = [(cell.record.settings, cell.name, cell.compared) for cell in cells if cell.compared is not None]
    regimes = list(dict.fromkeys(known["regime"] for known, _, _ in compared))
    names = list(dict.fromkeys(name for _, name, _ in compared))
    figure = drawing.figure(max(5.0, 2.75 * len(regimes)), 4.8)
    axes = figure.subplots(1, max(1, len(regimes)), sharey=True, squeeze=False)[0]
    for ax, regime in zip(axes, regimes, strict=False):
        bases = list(dict.fromkeys(known["base"] for known, _, _ in compared if known["regime"] == regime))
        for i, base in enumerate(bases):
            own = [(name, pair) for known, name, pair in compared if (known["regime"], known["base"]) == (regime, base)]
            x, error = [pair.difference for _, pair in own], [pair.high - pair.difference for _, pair in own]
            y = [names.index(name) + (i - (len(bases) - 1) / 2) * 0.11 for name, _ in own]
            colour, marker = STYLES[base]
            ax.errorbar(x, y, xerr=error, fmt=marker, color=colour, label=NAMES[base], markersize=4.5, capsize=1.5)
        ax.axvline(0.0, color=palette.INK, linewidth=0.8)
        ax.set_xscale("symlog", linthresh=1)
        low, high = ax.get_xlim()
        ax.set_xticks([tick for tick in TICKS if low <= tick <= high])
        ax.set_xticks([], minor=True)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.tick_params(axis="x", labelsize=7)
        ax.set_title(regime, fontsize=10)
        ax.set_yticks(range(len(names)), [f"α, β1 =\n{name}" for name in names])
        ax.grid(axis="y", linewidth=0.3)
    axes[0].invert_yaxis()
    figure.supxlabel("test accuracy minus that of the base alone, points (paired, 95 %)", fontsize=9)
    drawing.legend(figure, "outside upper center", columns=len(NAMES))
    return figure
