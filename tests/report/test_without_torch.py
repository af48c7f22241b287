"""A report opens on a laptop without torch: the committed results, made again from their records, byte for byte."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tarfile
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "docs" / "results"
WITHOUT = """
import sys


class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "accelerate", "transformers", "optuna", "sklearn", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Nothing())
from thalweg.commands.main import main

main(["report", sys.argv[1]])
"""


def test_the_committed_results_are_made_again(tmp_path, subtests):
    """In one test: its workers would each make them."""
    with tarfile.open(RESULTS / "records.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for path in [*tmp_path.glob("**/report.html"), *tmp_path.glob("**/results.csv"), *tmp_path.glob("**/*.svg")]:
        path.unlink()
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert process.returncode == 0, process.stderr
    kept = {kind: list(RESULTS.glob(f"**/{kind}")) for kind in ("README.md", "results.csv", "*.svg", "report.html")}
    reports = kept.pop("report.html")
    with subtests.test("the page, tables and pictures are the committed ones"):
        assert sum(map(len, kept.values())) > 20
        for path in itertools.chain(*kept.values()):
            assert (tmp_path / path.relative_to(RESULTS)).read_bytes() == path.read_bytes(), path.relative_to(RESULTS)
    with subtests.test("the reports are the committed ones but for their date"):
        assert len(reports) > 8
        for path in reports:
            ours, theirs = ((root / path.relative_to(RESULTS)).read_text("utf-8") for root in (tmp_path, RESULTS))
            assert undated(ours) == undated(theirs), path.relative_to(RESULTS)


def undated(page: str) -> str:
    return re.sub(r"Created [^<]* by", "Created by", page)
