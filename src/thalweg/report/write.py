"""Files of the report, each written whole or not at all: the page, and every run as a row of a table beside it."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from thalweg.records.files import write_bytes
from thalweg.report.page import render

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.report.summary import Summary

COLUMNS = (
    "task", "batch_size", "steps", "budget", "optimizer", "kind", "study", "round", "number", "seed", "failure",
    "reason", "validation", "test", "seconds", "steps_to_target", "seconds_to_target",
)  # fmt: skip


def rows(summary: Summary) -> list[dict[str, Any]]:
    """One a complete run; hyperparameters as ``set.NAME``, where it ran as ``at.NAME``, None where there is nothing."""
    found = []
    for table in summary.tables:
        for row in table.rows:
            for run in (*row.cell.trials, *row.cell.seeds):
                of_table = {name: getattr(table, name) for name in ("task", "batch_size", "steps", "budget")}
                of_run = {name: getattr(run, name) for name in COLUMNS[5:]}
                settings = {f"set.{name}": float(value) for name, value in run.settings.items()}
                at = {f"at.{name}": value for name, value in run.environment.items()}
                found.append({**of_table, "optimizer": row.optimizer, **of_run, **settings, **at})
    names = list(COLUMNS) + sorted({name for one in found for name in one} - set(COLUMNS), reverse=True)
    return [{name: one.get(name) for name in names} for one in found]


def write_report(summary: Summary, path: Path) -> Path:
    """Write the report to ``path``, ``results.csv`` beside it; return ``path``.

    Raises:
        OSError: they cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render(summary).encode("utf-8", "replace"))
    text, table = io.StringIO(), rows(summary)
    writer = csv.DictWriter(text, list(table[0]) if table else COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_bytes(path.with_name("results.csv"), text.getvalue().encode("utf-8", "replace"))
    return path
