"""The report in a notebook."""

from __future__ import annotations

from html import escape
from pathlib import Path

from thalweg.records.errors import UserError
from thalweg.records.reading import read
from thalweg.report.page import render
from thalweg.report.summary import summarise
from thalweg.report.write import write_report


class Report:
    """What a comparison found, as a notebook shows it: the last expression of a cell.

    ``report.html``, the same page as a file, and ``results.csv``, every run as a row, are written to the folder.
    ``summary`` holds all of it as plain data.

    Args:
        folder: of ``thalweg compare``, or what :func:`thalweg.lab.compare` returned.
        height: of the frame in the notebook, in pixels.

    Raises:
        UserError: the folder holds no comparison.
        OSError: it cannot be written.
    """

    def __init__(self, folder: str | Path, height: int = 600) -> None:
        found = read(Path(folder))
        if not found.tables:
            raise UserError(f"{folder} holds no comparison{f'; {found.problems[0]}' if found.problems else ''}")
        self.height = height
        self.summary = summarise(found, "; ".join(found.commands))
        self.path = write_report(self.summary, Path(folder) / "report.html")

    def __repr__(self) -> str:
        return f"Report({str(self.path.parent)!r})"

    def _repr_html_(self) -> str:
        """The page in a frame, so that its styles and the notebook's do not meet."""
        page = escape(render(self.summary))
        return f'<iframe srcdoc="{page}" width="100%" height="{self.height}" style="border: 0"></iframe>'
