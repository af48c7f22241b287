"""Compute the printed numbers and verdicts of the committed results again: ``python tests/recount.py docs/results``.

Everything that README.md there and NAME/results.csv beside it print is computed anew from records.tar.xz, by code that
imports nothing of thalweg. It prints what differs (section, line, printed, computed), the numerals that are not
computed again, and how many were; the exit code is 1 if any differs. What a recipe says is compared as text. The
numbers of the slides and the paper are read from the CSV files beside the recipes.
"""

from __future__ import annotations

import math
import re
import sys
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from recounted import claims, compared, measurements, preface, published
from recounted.archive import Archive
from recounted.printed import Cell, Page

if TYPE_CHECKING:
    from recounted.archive import Record

STUDIES = Path(__file__).parents[1] / "src" / "thalweg" / "studies"
MEASURED = {
    "memory": measurements.memory, "valleys-2d": measurements.valleys, "sine-landscape": measurements.sine_landscape,
    "flatness": measurements.flatness, "edge-of-stability": measurements.edge, "convergence": measurements.convergence,
}  # fmt: skip


def recount(folder: Path) -> tuple[Page, list[tuple[str, int, str, str]]]:
    """The page with all that was compared, and what differs, in results.csv too."""
    archive = Archive(folder / "records.tar.xz")
    page = Page((folder / "README.md").read_text("utf-8").split("\n"))
    printed = published.read(STUDIES)
    names = {archive.recipe(name)["title"]: name for name in archive.files}
    titles = [title for title, _ in page.sections() if title]
    if sorted(titles) != sorted(names):
        page.wrong(1, f"sections {titles}", f"{sorted(names)}")
    tables = {
        name: compared.tables_of(archive, name) for title, _ in page.sections()
        if (name := names.get(title)) and name not in MEASURED
    }  # fmt: skip
    tested = {
        archive.recipe(name)["title"]: claims.claims_of(archive.recipe(name), own) for name, own in tables.items()
    }
    family = claims.family_of([claim for own in tested.values() for claim in own])
    beside = []
    for title, lines in page.sections():
        if title not in names:
            claims.head(page, lines, tested, family, printed)
            by_name = {names[title]: own for title, own in tested.items()}
            preface.sentences(page, lines, archive, tables, by_name, family, printed)
            continue
        name = names[title]
        recipe = archive.recipe(name)
        paragraphs(page, lines, recipe, archive.files[name]["reproduce.json"])
        published.tables(page, lines, recipe, printed)
        if name in MEASURED:
            MEASURED[name](page, lines, archive)
            continue
        compared.results(page, lines, tables[name])
        claims.sections(page, lines, tested[title], family, printed)
        numbers, differ = compared.csv_of(folder / name / "results.csv", tables[name])
        page.numbers += numbers
        beside += [(f"{name}/results.csv", *one) for one in differ]
    total = math.fsum(files["reproduce.json"]["seconds"] for files in archive.files.values())
    took(page, next(i for i, text in enumerate(page.lines, 1) if text.startswith("Total time: ")), total)
    return page, [*page.differ, *beside]


def paragraphs(page: Page, lines: range, recipe: Record, done: Record) -> None:
    """The heading and what the recipe says, as text, and how long it ran."""
    page.text(Cell(lines.start - 1, 3, page[lines.start - 1][3:]), recipe["title"])
    own = [recipe["about"].strip(), recipe[done["scale"]]["about"].strip()]
    line = lines.start + 1
    for paragraph in own:
        for text in paragraph.split("\n"):
            page.text(Cell(line, 0, page[line]), text)
            line += 1
        line += 1
    ran = page[line]
    page.text(Cell(line, 0, ran[: ran.find("` in ")]), f"Run by `{done['command']}")
    took(page, line, done["seconds"])


def took(page: Page, line: int, seconds: float) -> None:
    """A duration, which is a number."""
    found = re.search(r"\d+:\d\d:\d\d", page[line])
    page.numbers += 1
    if found is None or found[0] != str(timedelta(seconds=round(seconds))):
        page.wrong(line, page[line], str(timedelta(seconds=round(seconds))))
    if found is not None:
        page.seen(Cell(line, found.start(), found[0]))


def main(folder: str) -> int:
    page, differ = recount(Path(folder))
    for section, line, printed, computed in differ:
        print(f"{section}, line {line}: printed {printed}, computed {computed}")
    left: dict[int, list[str]] = defaultdict(list)
    for line, numeral in page.not_looked_at():
        left[line].append(numeral)
    for line, numerals in left.items():
        print(f"not recomputed: line {line}: {', '.join(numerals)} in: {page[line][:160]}")
    print(f"{page.numbers} numbers, {page.verdicts} verdicts, {len(differ)} differ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
