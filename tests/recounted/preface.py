"""The sentences that stand before all sections, where they carry a result."""

from __future__ import annotations

import math
import re
from statistics import mean
from typing import TYPE_CHECKING

from recounted.claims import everywhere
from recounted.printed import NUMERAL, Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recounted.archive import Archive
    from recounted.claims import Claim
    from recounted.compared import Contender, Table
    from recounted.printed import Page
    from recounted.published import Row

ALTO = "alto:alpha=-5:beta=0.99"


def sentences(
    page: Page, lines: range, archive: Archive, tables: dict[str, list[Table]], tested: dict[str, list[Claim]],
    family: int, printed: list[Row],
) -> None:  # fmt: skip
    """Each pattern with the numbers in it: {} for the next one."""

    def between(name: str, a: str, b: str, *place: str | int, measure: str = "test") -> list[float]:
        """The difference with its limits, + where a is better; of a task, a batch size and, where needed, steps."""
        asked = (a, b, measure)
        (found,) = [one.difference for claim in tested[name]
                    if (claim.says["a"], claim.says["b"], claim.says.get("measure", "test")) == asked
                    for one in claim.tests if one.table.key[:len(place)] == place]  # fmt: skip
        return [found.mean, *found.limits(family)]

    def turned(values: list[float]) -> list[float]:
        mean, low, high = values
        return [-mean, -high, -low]

    def lengths(a: str, b: str, steps: int) -> list[float]:
        return between("few-steps", a, b, "fashion-mnist", 1024, steps)

    def grown(b: str, size: int) -> list[float]:
        """By how much ALTO is above ``b`` where the batch grows at the same number of epochs."""
        return between(scaling, ALTO, b, "fashion-mnist", size)

    def soon(a: str, b: str, size: int) -> list[float]:
        """Of the VGG, how many steps fewer the first needs to the target."""
        return between("wall-clock", a, b, "digits-vgg", size, measure="steps to target")

    def good(a: str, size: int) -> list[float]:
        """Of the VGG, by how much the accuracy at the end is above LAMB's."""
        return between("wall-clock", a, "lamb", "digits-vgg", size)

    def pooled(name: str, a: str, b: str) -> list[float]:
        """The same over all tables of a claim."""
        (found,) = [claim.pooled for claim in tested[name]
                    if (claim.says["a"], claim.says["b"]) == (a, b) and claim.pooled is not None]  # fmt: skip
        return [found.mean, *found.limits(family)]

    def over_all(a: str, b: str) -> list[float]:
        """The same over all claims of the page, and over how many tables."""
        (found,) = [one.difference for one in everywhere([claim for own in tested.values() for claim in own])
                    if (one.a, one.b) == (a, b)]  # fmt: skip
        return [found.mean, *found.limits(family), found.tables]

    def over_lengths(a: str, b: str) -> list[float]:
        """Where training is short and where it is long."""
        return pooled("few-steps", a, b)

    def runs_of(name: str, optimizer: str, *place: str | int) -> Contender:
        (table,) = [one for one in tables[name] if one.key[: len(place)] == place]
        one = table.named(optimizer)
        assert one is not None
        return one

    def loss(name: str, optimizer: str, *place: str | int) -> float:
        """The mean training loss at the end."""
        return mean(runs_of(name, optimizer, *place).losses)

    def above(name: str, a: str, b: str, *place: str | int) -> float:
        """By how much the first's mean of the test metric is above the second's."""
        return mean(runs_of(name, a, *place).tests) - mean(runs_of(name, b, *place).tests)

    images, small, slides = "image-classification", ("fashion-mnist", 128), ("fashion-mnist", 16384)
    minutes = float(archive.files["gpt2-pretraining"]["reproduce.json"]["seconds"]) / 60.0
    scaling = "batch-size-scaling"
    grid, digits, crowd = "hyperparameters", ("digits", 64), ("digits", 1024)
    few, exploits, uncorrected = (*slides, 45), "alto:alpha=0.5:beta=0.01", "lamb-uncorrected"
    adam = between("sine", "thalweg.EAdam:alpha=-5:beta=0.99", "adam", "sine-noisy", 32768)
    long, nesterov, plain = (*slides, 300), "nesterov-lamb", "lamb"
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
        ("ALTO at α = -5 is {} points ({} to {}) above, over {} tables, equivalent; at α = .5, where half were asked "
         "after they had been seen, {} ({} to {}), over {}, and Nesterov momentum {} ({} to {}), over {}.",
         [*over_all(ALTO, plain), *over_all(exploits, plain), *over_all(nesterov, plain)]),
        ("the factor of {} by which", [math.exp(adam[0])]),
        ("not {} to {}.", _copies(printed)),
        ("ran again, alone, in {} minutes", [minutes]),
        ("No claim asks of α = .5 on the digits at 1024, whose mean is {} below LAMB's, nor of α = -5 there at 64, "
         "whose mean is {} above.",
         [above(grid, plain, exploits, *crowd), above(grid, ALTO, plain, *digits)]),
        ("at all three, {} ({} to {}) between them on average", pooled(scaling, ALTO, plain)),
        ("Beside AdamW ALTO is {} ({} to {}) better at 4096, in 195 steps, {} ({} to {}) worse at 1024, in 795, and "
         "{} ({} to {}) above at 16384, in 45, undecided,",
         [*grown("adamw", 4096), *turned(grown("adamw", 1024)), *grown("adamw", 16384)]),
        ("over the three they are equivalent, {} ({} to {}).", pooled(scaling, ALTO, "adamw")),
        ("Beside AdaBelief ALTO is {} ({} to {}) better at 4096, equivalent at 1024, {} ({} to {}), and undecided at "
         "16384, {} ({} to {}).",
         [value for size in (4096, 1024, 16384) for value in grown("adabelief", size)]),
        ("{} points above ALTO at 1024, {} at 4096 and {} at 16384.",
         [above(scaling, "muon", ALTO, "fashion-mnist", size) for size in (1024, 4096, 16384)]),
        ("is {} points ({} to {}) better than α = -5, β1 = .99, as the slides have it, and {} ({} to {}) better than "
         "LAMB",
         [*between(grid, exploits, ALTO, *digits), *between(grid, exploits, plain, *digits)]),
        ("α = -5 and α = .5 differ by {} ({} to {}), and α = -5 and LAMB by {} ({} to {})",
         [*between(grid, ALTO, exploits, *crowd), *between(grid, ALTO, plain, *crowd)]),
        ("ends at {} in the first and at {} in the second", [loss(grid, plain, *digits), loss(grid, plain, *crowd)]),
        ("is undecided: {} fewer ({} to {}), {} more ({} to {}), {} more ({} to {}).",
         [*soon(ALTO, plain, 64), *turned(soon(ALTO, plain, 256)), *turned(soon(ALTO, plain, 1024))]),
        ("It needs {} ({} to {}) more than AdamW at batch 64, where LAMB's mean is as high; {} more ({} to {}) at 256 "
         "and {} fewer ({} to {}) at 1024",
         [*turned(soon(ALTO, "adamw", 64)), *turned(soon(ALTO, "adamw", 256)), *soon(ALTO, "adamw", 1024)]),
        ("it needs {} ({} to {}) fewer than LAMB at 64, {} fewer ({} to {}) at 256",
         [*soon(exploits, plain, 64), *soon(exploits, plain, 256)]),
        ("α = .5 is {} ({} to {}) above LAMB at 256, {} ({} to {}) below at 1024, and undecided at 64, {} ({} to {}); "
         "α = -5 is undecided at 64 and 256, {} ({} to {}) and {} ({} to {}), and equivalent at 1024, {} ({} to {}).",
         [*good(exploits, 256), *turned(good(exploits, 1024)), *good(exploits, 64),
          *(value for size in (64, 256, 1024) for value in good(ALTO, size))]),
        ("On average over the three α = -5 is {} ({} to {}) above LAMB, and α = .5 {} ({} to {})",
         [*pooled("wall-clock", ALTO, plain), *pooled("wall-clock", exploits, plain)]),
    ]  # fmt: skip
    text = "\n".join(page[i] for i in lines)
    starts = [0]
    for i in lines:
        starts.append(starts[-1] + len(page[i]) + 1)
    for pattern, numbers in rules:
        found = re.search(r"\s+".join(map(re.escape, pattern.split())).replace(r"\{\}", f"({NUMERAL})"), text)
        if found is None:
            page.wrong(lines.start, "no such sentence", pattern)
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
