"""``thalweg report``: the page of what is stored, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.commands import terminal
from thalweg.commands.judged import Judged
from thalweg.records import files as records
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from thalweg.report.summary import Summary


def report(folder: Path, /, *, options: Judged | None = None) -> None:
    """Rewrite the report from the stored runs.

    Args:
        folder: Output folder of `thalweg compare` or `thalweg reproduce`.
        options: how it is judged.
    """
    from thalweg.studies.page import write_page

    terminal.interruptible()
    options = options or Judged()
    recipes = any(folder.glob("*/reproduce.json"))
    if recipes and (options.margin is not None or options.reference is not None):
        raise UserError(f"{folder} holds recipes: each recipe.toml says its margin, --margin and --reference cannot")
    if (page := write_page(folder)) is not None:
        terminal.console().print(f"report: {page.resolve()}", soft_wrap=True)
        return
    write_and_print(folder, f"thalweg report {folder}", terminal.console(), options)


def judge(root: Path, judged: Judged, command: str = "") -> Summary:
    """What the records of a folder say.

    Raises:
        UserError: there are none, or they cannot be judged so.
    """
    from thalweg.records.reading import read
    from thalweg.report.summary import summarise

    found = read(root)
    if not found.tables:
        damaged = f"; {found.problems[0]}" if found.problems else ""
        raise UserError(f"{root} holds no comparison{damaged}: run `thalweg compare TASK --out {root}` first")
    made = "; ".join(found.commands) or command
    return summarise(found, made, margin=judged.margin, reference=judged.reference)


def write_and_print(root: Path, command: str, console: Any, judged: Judged) -> None:
    """The report, then the tables: whatever the terminal does, the report is there."""
    from thalweg.commands.tables import grid
    from thalweg.report import write_report

    summary = judge(root, judged, command)
    with records.writing(root / "report.html"):
        path = write_report(summary, root / "report.html")
    for table in summary.tables:
        console.print(grid(table, summary, console))
    for problem in summary.problems[:10]:
        console.print(f"not used: {problem}", soft_wrap=True)
    if len(summary.problems) > 10:
        console.print(f"... and {len(summary.problems) - 10} more damaged records")
    console.print(f"report: {path.resolve()}", soft_wrap=True)
