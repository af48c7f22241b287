"""The sentences that stand before all sections, where they carry a result."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from recounted.printed import NUMERAL, Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recounted.archive import Archive
    from recounted.claims import Claim, Difference
    from recounted.compared import Table
    from recounted.printed import Page
    from recounted.published import Row

ALTO = "alto:alpha=-5:beta=0.99"


def sentences(
    page: Page, lines: range, archive: Archive, tables: dict[str, list[Table]], tested: dict[str, list[Claim]],
    printed: list[Row],
) -> None:  # fmt: skip
    """Each pattern with the numbers in it: {} for the next one."""

    def between(name: str, a: str, b: str, batch: int) -> Difference:
        found = [one.difference for claim in tested[name] if (claim.says["a"], claim.says["b"]) == (a, b)
                 for one in claim.tests if one.table.key[1] == batch]  # fmt: skip
        return found[-1]

    def seconds(name: str) -> float:
        return float(archive.files[name]["reproduce.json"]["seconds"])

    images = "image-classification"
    (large,) = (one for one in tables[images] if one.key[:2] == ("fashion-mnist", 16384))
    factor = between("sine", "thalweg.EAdam:alpha=-5:beta=0.99", "adam", 32768)
    adamw, muon = (between(images, ALTO, name, 16384) for name in ("adamw", "muon"))
    rules: list[tuple[str, Sequence[float]]] = [
        ("a factor of {} in test error", [math.exp(factor.mean)]),
        ("at 16384, trained for {} epochs", [large.any["steps"] * 16384 / large.any["train_examples"]]),
        ("ALTO loses to AdamW by {} points", [-adamw.mean]),
        ("not in the slides, by {}", [-muon.mean]),
        ("not {} to {}", _copies(printed)),
        ("ran again, alone, in {} seconds and {} minutes", [seconds("wall-clock"), seconds("gpt2-pretraining") / 60.0]),
    ]
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
