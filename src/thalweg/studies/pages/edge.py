"""Where training settles, beside the stability limit: what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import TYPE_CHECKING

from thalweg.report import drawing, palette
from thalweg.studies.pages.settings import MOMENTUM, Record, finished
from thalweg.studies.sections import Grid, Picture, Section
from thalweg.theory import crossings

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"gd": "gradient descent", "momentum": "momentum .9", "adam": "Adam", "lamb": "LAMB"}
STYLES = dict(
    zip(NAMES, zip(map(palette.colour, ("sgd", "momentum", "adam", "lamb")), "o^sD", strict=True), strict=True)
)
WITHIN = 0.10
KINDS = {False: "where instability is a change of sign at every step", True: "where instability is a slow oscillation"}
"""Whether a setting :func:`swings`, in words."""


def page(folder: Path) -> Section:
    """Predicted and measured ηλ on the grid, and where they are apart."""
    done = finished(folder)
    whole = [one for one in done if one.settings["batch"] >= one.settings["examples"]]
    parts = [one for one in done if one.settings["batch"] < one.settings["examples"]]
    grids = [_grid(f"Full batch: ηλ over the stability limit, {_averaged(done[0])}", whole)] if whole else []
    if parts:
        title = (
            f"Batches of {parts[0].settings['batch']} of {parts[0].settings['examples']}: the same, and batch sharpness"
        )
        grids.append(_grid(title, parts))
    findings = [*_findings(whole), *_of_batches(parts)]
    pictures = (_picture(whole, folder / "edge.svg"),) if whole else ()
    return Section(findings=findings, grids=grids, pictures=pictures)


def _averaged(one: Record) -> str:
    found = one.settings
    return f"mean over steps {found['steps'] - found['last']} to {found['steps']}, {found['seeds']} seeds"


def swings(one: Record) -> bool:
    """Whether its limit is a slow complex pair behind momentum, and not a change of sign every step."""
    known = crossings(one.settings["alpha"], one.settings["beta"], momentum=MOMENTUM[one.settings["base"]])
    return known.rotation < known.flip


def shares(one: Record, name: str = "", middle: Callable[[Sequence[float]], float] = mean) -> list[float]:
    """ηλ over its limit of each seed that did not diverge, the mean (or another middle) over the measurements.

    What is measured over some steps stands for what is at one place, where there is both.
    """
    names = (name,) if name else ("swing", "eta_lambda")
    found = [[values for values in one.found.get(each, ()) if values and None not in values] for each in names]
    return [middle(values) / one.limit for values in next(filter(None, found), [])]


def _grid(title: str, done: list[Record]) -> Grid:
    batch = any(shares(one, "batch") for one in done)
    swing = any(shares(one, "swing") for one in done)
    head = ["base; α, β1", "η", "predicted ηλ", "measured ηλ", "measured / predicted", "by the median", "λ_max", "loss"]
    head += ["batch sharpness / predicted"] if batch else []
    head += ["at one place / predicted"] if swing else []
    rows = []
    for one in done:
        sharpness = [mean(values) for values in one.found["sharpness"] if values and None not in values]
        losses = [mean(values) for values in one.found["loss"] if values and None not in values]
        found = [
            [share * one.limit for share in shares(one)], shares(one), shares(one, middle=median), sharpness, losses
        ]  # fmt: skip
        found += [shares(one, "batch")] if batch else []
        found += [shares(one, "eta_lambda") if shares(one, "swing") else []] if swing else []
        row = [f"{NAMES[one.settings['base']]}; {one.setting}", f"{one.settings['lr']:g}", f"{one.limit:.3g}"]
        rows.append(row + [_plain(values, one.settings["seeds"]) for values in found])
    return Grid(title, tuple(head), rows)


def _plain(values: Sequence[float], seeds: int) -> str:
    """The mean and the range, as two seeds are too few for more; how many there are where some are not."""
    if not values:
        return ""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    text = f"{mean(values):.3g} ({low} to {high})" if low != high else low
    return text if len(values) == seeds else f"{text} ({len(values)} of {seeds})"


def _findings(whole: list[Record]) -> list[str]:
    said = []
    for base, name in NAMES.items():
        for kind, words in KINDS.items():
            own = [one for one in whole if one.has(base=base) and swings(one) is kind]
            found = [(one, mean(each)) for one in own if (each := shares(one))]
            if not found:
                continue
            least, most = (pick(found, key=lambda pair: pair[1]) for pick in (min, max))
            close = sum(abs(share - 1.0) <= WITHIN for _, share in found)
            text = [f"{close} of {len(own)} within 10 % of the prediction"]
            below, above = (sum(sign * (share - 1.0) > WITHIN for _, share in found) for sign in (-1.0, 1.0))
            text += [f"{below} below it (sharpness did not rise that far)"] if below else []
            text += [f"{above} above"] if above else []
            text += [f"{len(own) - len(found)} diverged"] if len(found) < len(own) else []
            half = sum(0 < len(shares(one)) < one.settings["seeds"] for one, _ in found)
            text += [f"{half} that diverged on some seeds, counted by the others"] if half else []
            where = ", measured at one place" if base == "lamb" and not shares(found[0][0], "swing") else ""
            said.append(
                f"**{name}{where}, {words}** — {_verdict([share for _, share in found])}: {', '.join(text)}; measured "
                f"/ predicted from {least[1]:.3g} ({least[0].setting}) to {most[1]:.3g} ({most[0].setting})."
            )
    return said


def _verdict(found: list[float]) -> str:
    """Whether the limit says where training settles.

    >>> _verdict([0.95, 1.05]), _verdict([0.8, 1.0]), _verdict([1.2, 1.0]), _verdict([1.2, 1.3])
    ('the theory holds', 'not more than 10 % above the limit', 'the theory holds in part', 'the theory fails here')
    """
    if max(found) <= 1.0 + WITHIN:
        return "the theory holds" if min(found) >= 1.0 - WITHIN else "not more than 10 % above the limit"
    close = sum(abs(share - 1.0) <= WITHIN for share in found)
    return "the theory holds in part" if close else "the theory fails here"


def _of_batches(parts: list[Record]) -> list[str]:
    said = []
    for base, name in NAMES.items():
        flips = [one for one in parts if one.has(base=base) and not swings(one)]
        own, along = ([mean(found) for one in flips if (found := shares(one, of))] for of in ("", "batch"))
        if own:
            text = f"sharpness of all data is {min(own):.3g} to {max(own):.3g} of the prediction"
            text += f", batch sharpness {min(along):.3g} to {max(along):.3g}" if along else ""
            said.append(f"**{name}, batches**: the {text}.")
    return said


def _picture(whole: list[Record], path: Path) -> Picture:
    drawn = drawing.figure(6.4, 4.8)
    ax = drawn.subplots()
    ax.plot((0.5, 600.0), (0.5, 600.0), color=palette.INK, linewidth=0.9)
    ax.fill_between((0.5, 600.0), (0.45, 540.0), (0.55, 660.0), color=palette.INK, alpha=0.2, linewidth=0)
    for base, name in NAMES.items():
        colour, marker = STYLES[base]
        own = [(one, found) for one in whole if one.has(base=base) and (found := shares(one))]
        label: str | None = name
        for hollow in (False, True):
            x = [one.limit for one, _ in own if swings(one) is hollow]
            y = [mean(found) * one.limit for one, found in own if swings(one) is hollow]
            if x:
                face = "none" if hollow else colour
                ax.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6, label=label)
                label = None
    ax.set(xscale="log", yscale="log", xlim=(0.8, 80), ylim=(0.8, 600))
    ax.set(xlabel="predicted: stability limit of ηλ", ylabel="measured: ηλ as the optimizer sees it")
    drawing.ticks(ax.xaxis, (1, 2, 5, 10, 20, 40))
    drawing.ticks(ax.yaxis, (1, 2, 5, 10, 20, 40, 100, 200, 400))
    ax.legend(fontsize=8, loc="upper left")
    told = (
        "Gradient descent and Adam are on the line, oscillating settings above it, and LAMB, whose trust ratios keep "
    )
    told += "changing, far above."
    if any(shares(one, "swing") for one in whole):
        told = "LAMB's is over its last ten steps."
    return Picture(
        drawing.save(drawn, path),
        "Measured against predicted ηλ, one point a setting of α and β1, full batch; the band is 10 %. Hollow: "
        f"settings whose limit is a slow oscillation (α < 0 in front of momentum). {told}",
    )
