"""The report as files, each written whole or not at all, and in a notebook: the page, and every run as a row."""

from __future__ import annotations

import csv
import io
from html import escape
from pathlib import Path
from typing import Any

from thalweg.records.errors import UserError
from thalweg.records.files import write_bytes
from thalweg.records.reading import read
from thalweg.report.page import render
from thalweg.report.summary import Summary, summarise

COLUMNS = (
    "task", "batch_size", "steps", "budget", "optimizer", "kind", "study", "round", "number", "seed", "failure",
    "reason", "validation", "test", "seconds", "steps_to_target", "seconds_to_target",
)  # fmt: skip


def rows(summary: Summary) -> list[dict[str, Any]]:
    """One a complete run; hyperparameters as ``set.NAME``, where it ran as ``at.NAME``, None where there is nothing."""
    found = []
    for table in summary.tables:
        for row in table.rows:
            for run in row.cell.runs:
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


class Report:
    """What a comparison found, as a notebook shows it: the last expression of a cell.

    ``report.html``, the same page as a file, and ``results.csv``, every run as a row, are written to the folder.
    ``summary`` holds all of it as plain data.

    Args:
        folder: of ``thalweg compare``, or what :func:`thalweg.lab.compare` returned.
        height: of the frame in the notebook, in pixels.
        margin: the least difference that matters, in the metric's unit; None for the metric's own.
        reference: the optimizer that each other is compared with; None for all pairs.

    Raises:
        UserError: the folder holds no comparison, or none that can be judged so.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: str | Path, height: int = 600, *, margin: float | None = None, reference: str | None = None
    ) -> None:
        found = read(Path(folder))
        if not found.tables:
            raise UserError(f"{folder} holds no comparison{f'; {found.problems[0]}' if found.problems else ''}")
        self.height = height
        self.summary = summarise(found, "; ".join(found.commands), margin=margin, reference=reference)
        self.path = write_report(self.summary, Path(folder) / "report.html")

    def __repr__(self) -> str:
        return f"Report({str(self.path.parent)!r})"

    def _repr_html_(self) -> str:
        """The page in a frame, so that its styles and the notebook's do not meet."""
        page = escape(render(self.summary))
        return f'<iframe srcdoc="{page}" width="100%" height="{self.height}" style="border: 0"></iframe>'
