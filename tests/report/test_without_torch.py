"""A report opens on a laptop without torch: the committed results, made again from their records, byte for byte."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    with tarfile.open(RESULTS / "records.tar.xz") as archive:
        archive.extractall(root, filter="data")
    for path in [*root.glob("**/report.html"), *root.glob("**/results.csv"), *root.glob("**/*.svg")]:
        path.unlink()
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(root)], capture_output=True, text=True, cwd=root, check=False
    )
    assert process.returncode == 0, process.stderr
    return root


def test_the_page_tables_and_pictures_are_the_committed_ones(again):
    kept = [path for kind in ("README.md", "results.csv", "*.svg") for path in RESULTS.glob(f"**/{kind}")]
    assert len(kept) > 20
    for path in kept:
        assert (again / path.relative_to(RESULTS)).read_bytes() == path.read_bytes(), path.relative_to(RESULTS)


def test_the_reports_are_the_committed_ones_but_for_their_date(again):
    kept = list(RESULTS.glob("**/report.html"))
    assert len(kept) > 8
    for path in kept:
        ours, theirs = ((root / path.relative_to(RESULTS)).read_text("utf-8") for root in (again, RESULTS))
        assert undated(ours) == undated(theirs), path.relative_to(RESULTS)


def undated(page: str) -> str:
    return re.sub(r"Created [^<]* by", "Created by", page)
