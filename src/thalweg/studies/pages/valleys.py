"""Walks along valleys: what is said of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scipy.special import ndtri

from thalweg.report.decisions import SIGNIFICANT
from thalweg.studies.pages.settings import Record, finished
from thalweg.studies.sections import Grid, Picture, Section

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"sgd": "SGD", "adam": "Adam", "lamb": "LAMB"}


def chosen(record: Record) -> dict[str, Any]:
    """The numbers of the reported walkers at the learning rate at which the tuning walkers visited the lowest losses.

    Where the tuning walkers diverged at all of them, those of the lowest learning rate.
    """
    losses = [
        math.inf if one["lowest"] is None or one["diverged"] > 0.0 else one["lowest"] for one in record.found["tuning"]
    ]
    found: dict[str, Any] = record.found["factors"][losses.index(min(losses))]
    return found


def page(folder: Path) -> Section:
    """For each function what walkers of each setting come to, at one learning rate and at their own."""
    done = finished(folder)
    functions = dict.fromkeys(one.settings["function"] for one in done)
    grids = [_grid(name, [one for one in done if one.has(function=name)]) for name in functions]
    pictures = [
        Picture(
            path,
            f"Walks on {name}, in a row the same but for E: grey without it, blue α < 0, orange α > 0. Dotted: the "
            "floor of the valley; star: the lowest minimum; cross: another; ring: the start; dot: the end. Note how "
            "much of the dotted line is walked.",
        )
        for name in functions
        if (path := folder / f"{name}.png").exists()
    ]
    return Section(findings=_findings(done), grids=grids, pictures=pictures)


def _grid(function: str, done: list[Record]) -> Grid:
    size = done[0].settings
    head = (
        "base; α, β1", "same η: floor walked", "lowest loss", "λ_max at the end", "own η / default", "floor walked",
        "lowest loss ", "λ_max at the end ", "minima seen", "ends in the lowest",
    )  # fmt: skip
    rows = []
    for one in done:
        same, own = _same(one), chosen(one)
        factor = one.settings["factors"][one.found["factors"].index(own)]
        rows.append((
            f"{NAMES[one.settings['base']]}; {one.setting}",
            *(_said(same, name) for name in ("along", "lowest", "end_sharpness")), f"{factor:g}",
            *(_said(own, name) for name in ("along", "lowest", "end_sharpness", "minima", "found_lowest")),
        ))  # fmt: skip
    title = f"{function}: means ± standard errors over {size['walkers']} walkers of {size['steps']} steps"
    return Grid(title, head, rows)


def _said(row: dict[str, Any], name: str) -> str:
    value, error = row[name], row[f"{name}_standard_error"]
    if value is None:
        return "diverged" if row["diverged"] else ""
    return f"{value:.3g} ± {error:.1g}"


def _findings(done: list[Record]) -> list[str]:
    """How often α < 0 and α > 0 walk further than the base alone, and end flatter, corrected over all of it."""
    comparisons = 4 * sum(one.settings["alpha"] != 0.0 for one in done)
    limit = -float(ndtri(SIGNIFICANT / 2.0 / max(1, comparisons)))
    said = []
    for how, pick in (("the learning rate at which the base alone walks", _same), ("its own learning rate", chosen)):
        for base, name in NAMES.items():
            counts = []
            for sign, word in ((-1.0, "α < 0"), (1.0, "α > 0")):
                own = [one for one in done if one.has(base=base) and one.settings["alpha"] * sign > 0.0]
                alone = [
                    next(two for two in done if two.has(function=one.settings["function"], base=base, alpha=0.0))
                    for one in own
                ]
                pairs = [(pick(one), pick(two)) for one, two in zip(own, alone, strict=True)]
                walked = [_apart(a, b, "along", 1, limit) for a, b in pairs]
                curved = [_apart(a, b, "end_sharpness", -1, limit) for a, b in pairs]
                counts.append(
                    f"{word} walks further in {walked.count(1)} and less far in {walked.count(-1)} of {len(own)}, "
                    f"ends flatter in {curved.count(-1)} and sharper in {curved.count(1)}"
                )
            said.append(
                f"**{name}, at {how}**: {'; '.join(counts)} (beyond {limit:.1f} standard errors of the "
                f"difference: 95 % over {comparisons} of them)."
            )
    return said


def _same(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = record.found["factors"][record.settings["factors"].index(1.0)]
    return found


def _apart(a: dict[str, Any], b: dict[str, Any], name: str, better: int, limit: float) -> int:
    """1, -1 or 0: more, less, or undecided, as where the better one is that of which more walkers diverged."""
    if a[name] is None or b[name] is None:
        return 0
    difference = a[name] - b[name]
    error = math.hypot(a[f"{name}_standard_error"], b[f"{name}_standard_error"])
    more = 1 if difference > 0.0 else -1
    ahead, behind = (a, b) if more == better else (b, a)
    return 0 if abs(difference) <= limit * error or ahead["diverged"] > behind["diverged"] else more
