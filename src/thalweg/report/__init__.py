"""The report: one HTML file that explains itself and opens anywhere, without a network, and tables beside it.

``words`` says numbers and verdicts, ``sentences`` what was found, ``svg`` draws axes, ``charts`` what is drawn on
them, ``code`` is the settings as code, ``page`` puts all together, and ``write`` has it as files, with the table of
all runs, and in a notebook. Charts are drawn here, not by the browser: the page prints, and reads without
JavaScript, which only sorts, filters and copies.
"""

from thalweg.report.page import render
from thalweg.report.write import Report, write_report

__all__ = ["Report", "render", "write_report"]
