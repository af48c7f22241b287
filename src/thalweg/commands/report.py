"""``thalweg report``: the page of what is stored, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thalweg.commands import terminal
from thalweg.records import files as records
from thalweg.records.errors import UserError


def report(folder: Path, /) -> None:
    """Rewrite the report from the stored runs.

    Args:
        folder: Output folder of `thalweg compare` or `thalweg reproduce`.
    """
    from thalweg.studies.page import write_page

    terminal.interruptible()
    if (page := write_page(folder)) is not None:
        terminal.console().print(f"report: {page.resolve()}", soft_wrap=True)
        return
    write_and_print(folder, f"thalweg report {folder}", terminal.console())


def write_and_print(root: Path, command: str, console: Any) -> None:
    """The report, then the tables: whatever the terminal does, the report is there."""
    from thalweg.commands.tables import grid
    from thalweg.records.reading import read
    from thalweg.report import write_report
    from thalweg.report.summary import summarise

    found = read(root)
    if not found.tables:
        damaged = f"; {found.problems[0]}" if found.problems else ""
        raise UserError(f"{root} holds no comparison{damaged}: run `thalweg compare TASK --out {root}` first")
    summary = summarise(found, "; ".join(found.commands) or command)
    with records.writing(root / "report.html"):
        path = write_report(summary, root / "report.html")
    for table in summary.tables:
        console.print(grid(table, summary, console))
    for problem in found.problems[:10]:
        console.print(f"not used: {problem}", soft_wrap=True)
    if len(found.problems) > 10:
        console.print(f"... and {len(found.problems) - 10} more damaged records")
    console.print(f"report: {path.resolve()}", soft_wrap=True)
