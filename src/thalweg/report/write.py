"""Files of the report, each written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.records.files import write_bytes
from thalweg.report import tabular
from thalweg.report.page import render

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.report.summary import Summary


def write_report(summary: Summary, path: Path) -> Path:
    """Write the report to ``path``, ``results.csv`` beside it; return ``path``.

    Raises:
        OSError: they cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render(summary).encode("utf-8", "replace"))
    write_bytes(path.with_name("results.csv"), tabular.csv_of(tabular.rows(summary)).encode("utf-8", "replace"))
    return path
