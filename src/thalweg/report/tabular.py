"""Every run as a row of a table, for those who want to look for themselves."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def csv_of(table: list[dict[str, Any]]) -> str:
    """As CSV, the header first; floats with every digit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
