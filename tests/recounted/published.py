"""Numbers of the slides and the paper, as tables beside ours and under claims."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from recounted.printed import Cell

if TYPE_CHECKING:
    from pathlib import Path

    from recounted.archive import Record
    from recounted.printed import Page

Row = dict[str, str]


def read(folder: Path) -> list[Row]:
    found = []
    for source in ("slides", "paper"):
        with (folder / f"{source}.csv").open(newline="", encoding="utf-8") as file:
            found += [{"source": source, **row, "where": _where(row)} for row in csv.DictReader(file)]
    return found


def _where(row: Row) -> str:
    batch = f"batch {row['batch_size']}" if row["batch_size"] else ""
    return ", ".join(part for part in (row["dataset"], row["model"], batch) if part)


def select(printed: list[Row], wanted: Row) -> list[Row]:
    return [row for row in printed if all(row[key] == value for key, value in wanted.items())]


def tables(page: Page, lines: range, recipe: Record, printed: list[Row]) -> None:
    """What a recipe shows beside its own: every cell, as text that is a number."""
    shown = [one for one in page.tables(lines) if one.title.text.startswith("Published")]
    if len(shown) != len(recipe.get("beside", [])):
        page.wrong(lines.start, f"{len(shown)} published tables", f"{len(recipe.get('beside', []))}")
    for table, wanted in zip(shown, recipe.get("beside", []), strict=False):
        rows = select(printed, wanted)
        metrics = {row["metric"] for row in rows}
        one = "" if len(metrics) > 1 else f": {metrics.pop()}"
        page.text(table.title, f"Published ({wanted['source']}){one}")
        values = {
            (row["optimizer"], row["where"] if one else f"{row['where']}: {row['metric']}"): row["value"]
            for row in rows
        }
        heads = [cell.text for cell in table.head[1:]]
        if {key for _, key in values} != {*heads} or {name for name, _ in values} != {
            row[0].text for row in table.rows
        }:
            page.wrong(table.title.line, "its rows and columns", "others")
        for cell in table.head:
            page.seen(cell)
        for row in table.rows:
            page.seen(row[0])
            for cell, head in zip(row[1:], heads, strict=True):
                page.numbers += bool(cell.text)
                page.text(cell, values.get((row[0].text, head), ""))


def under_a_claim(claim: Record, printed: list[Row]) -> list[tuple[str, str, str]]:
    """Where both are printed, and their numbers."""
    rows = select(printed, claim["paper"]) if "paper" in claim else []
    values = {(row["where"], row["optimizer"]): row["value"] for row in rows}
    wheres = dict.fromkeys(row["where"] for row in rows)
    names = (claim.get("paper_a", ""), claim.get("paper_b", ""))
    return [
        (where, values[where, names[0]], values[where, names[1]])
        for where in wheres if all((where, name) in values for name in names)
    ]  # fmt: skip


def sentence(page: Page, cell: Cell, claim: Record, printed: list[Row]) -> None:
    """``Published: ...; ...`` under a claim, with the differences."""
    found = under_a_claim(claim, printed)
    a, b = claim.get("paper_a"), claim.get("paper_b")
    text = "; ".join(f"{where}: {a} {{}}, {b} {{}} ({{}})" for where, _, _ in found)
    numbers = [number for _, x, y in found for number in (float(x), float(y), float(x) - float(y))]
    page.sentence(cell, f"Published: {text}", numbers)
