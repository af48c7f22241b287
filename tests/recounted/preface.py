"""The sentences that stand before all sections, where they carry a result."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from recounted.claims import everywhere
from recounted.printed import NUMERAL, Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recounted.archive import Archive
    from recounted.claims import Claim
    from recounted.compared import Table
    from recounted.printed import Page
    from recounted.published import Row

ALTO = "alto:alpha=-5:beta=0.99"


def sentences(
    page: Page, lines: range, archive: Archive, tables: dict[str, list[Table]], tested: dict[str, list[Claim]],
    family: int, printed: list[Row],
) -> None:  # fmt: skip
    """Each pattern with the numbers in it: {} for the next one."""

    def between(name: str, a: str, b: str, *place: str | int) -> list[float]:
        """The difference with its limits, + where a is better; of a task, a batch size and, where needed, steps."""
        (found,) = [one.difference for claim in tested[name] if (claim.says["a"], claim.says["b"]) == (a, b)
                    for one in claim.tests if one.table.key[:len(place)] == place]  # fmt: skip
        return [found.mean, *found.limits(family)]

    def turned(values: list[float]) -> list[float]:
        mean, low, high = values
        return [-mean, -high, -low]

    def lengths(a: str, b: str, steps: int) -> list[float]:
        return between("few-steps", a, b, "fashion-mnist", 1024, steps)

    def over_lengths(a: str, b: str) -> list[float]:
        """The same over all lengths, where training is short and where it is long."""
        (found,) = [claim.pooled for claim in tested["few-steps"] if (claim.says["a"], claim.says["b"]) == (a, b)]
        assert found is not None
        return [found.mean, *found.limits(family)]

    def seconds(name: str) -> float:
        return float(archive.files[name]["reproduce.json"]["seconds"])

    images, small, slides = "image-classification", ("fashion-mnist", 128), ("fashion-mnist", 16384)
    few, exploits, uncorrected = (*slides, 45), "alto:alpha=0.5:beta=0.01", "lamb-uncorrected"
    adam = between("sine", "thalweg.EAdam:alpha=-5:beta=0.99", "adam", "sine-noisy", 32768)
    long, nesterov, plain = (*slides, 300), "nesterov-lamb", "lamb"
    seven = next(one.difference for one in everywhere([claim for own in tested.values() for claim in own])
                 if (one.a, one.b) == (ALTO, plain))  # fmt: skip
    rules: list[tuple[str, Sequence[float]]] = [
        ("in 45 steps {} ({} to {}) between them, in 300 steps {} ({} to {}).",
         [*between(images, ALTO, plain, *few), *between(images, ALTO, plain, *long)]),
        ("undecided in 45 steps, {} ({} to {}), and {} points ({} to {}) worse in 300",
         [*between(images, ALTO, "adamw", *few), *turned(between(images, ALTO, "adamw", *long))]),
        ("ALTO is {} points ({} to {}) better than LAMB in 45 steps, Nesterov momentum {} ({} to {})",
         [*between(images, exploits, plain, *few), *between(images, nesterov, plain, *few)]),
        ("equivalent to LAMB, {} ({} to {}).", between(images, exploits, plain, *long)),
        ("in 45 steps: {} points ({} to {}) above LAMB", turned(between(images, plain, uncorrected, *few))),
        ("{} ({} to {}) below ALTO", between(images, ALTO, uncorrected, *few)),
        ("Muon is {} points ({} to {}) better than ALTO in 45 steps and {} ({} to {}) in 300",
         [*turned(between(images, ALTO, "muon", *few)), *turned(between(images, ALTO, "muon", *long))]),
        ("SGD, in 45, {} ({} to {}) worse", between(images, ALTO, "sgd", *few)),
        ("α = .5 is {} ({} to {}) above LAMB and {} ({} to {}) above SGD",
         [*between(images, exploits, plain, *small), *turned(between(images, "sgd", exploits, *small))]),
        ("adds {} points ({} to {}) on average over the five lengths, from {} ({} to {}) at 40 steps to {} ({} to {}) "
         "at 320, while at 20 it is {} ({} to {}), undecided; Nesterov momentum adds {} ({} to {})",
         [*over_lengths(exploits, plain), *lengths(exploits, plain, 40), *lengths(exploits, plain, 320),
          *lengths(exploits, plain, 20), *over_lengths(nesterov, plain)]),
        ("equivalent to LAMB alone, {} points ({} to {})", over_lengths(ALTO, plain)),
        ("α = .5 costs {} ({} to {})", turned(over_lengths("e-muon:alpha=0.5:beta=0.01", "muon"))),
        ("against LAMB, {} points ({} to {}) are between them", [seven.mean, *seven.limits(family)]),
        ("the factor of {} by which", [math.exp(adam[0])]),
        ("not {} to {}.", _copies(printed)),
        ("ran again, alone, in {} seconds and {} minutes", [seconds("wall-clock"), seconds("gpt2-pretraining") / 60.0]),
    ]  # fmt: skip
    text = "\n".join(page[i] for i in lines)
    starts = [0]
    for i in lines:
        starts.append(starts[-1] + len(page[i]) + 1)
    for pattern, numbers in rules:
        found = re.search(r"\s+".join(map(re.escape, pattern.split())).replace(r"\{\}", f"({NUMERAL})"), text)
        if found is None:
            continue
        for group, value in enumerate(numbers, 1):
            line = next(i for i, start in enumerate(starts) if start > found.start(group)) - 1
            page.number(Cell(lines[line], found.start(group) - starts[line], found[group]), value)


def _copies(printed: list[Row]) -> list[float]:
    """The least and the most float32 copies that the paper's ALTO holds more than its LAMB, where it says of what."""
    held: dict[tuple[str, str], dict[str, float]] = {}
    for row in printed:
        if row["experiment"] == "memory" and (size := re.search(r"(\d+) parameters", row["model"])):
            held.setdefault((size[1], row["batch_size"]), {})[row["optimizer"]] = float(row["value"])
    more = [(own["ALTO"] - own["Lamb"]) * 2.0**20 / 4.0 / float(size) for (size, _), own in held.items()]
    return [min(more), max(more)]
