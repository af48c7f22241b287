"""The committed results are what somebody finds in their records who takes no line of thalweg's code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
RESULTS = TESTS.parent / "docs" / "results"
# An import of thalweg fails.
ALONE = "import runpy, sys; sys.modules['thalweg'] = None; sys.argv[:] = sys.argv[1:]; sys.path.insert(0, {!r}); " \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip


def recount(folder: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", ALONE.format(str(TESTS)), str(TESTS / "recount.py"), str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not process.stderr, process.stderr
    return process.returncode, process.stdout.splitlines()


def test_every_number_and_verdict_is_found_again_but_prose_and_captions():
    code, lines = recount(RESULTS)
    differ = [line for line in lines if ": printed " in line]
    assert (code, differ) == (0, [])
    numbers, verdicts = map(int, re.fullmatch(r"(\d+) numbers, (\d+) verdicts, 0 differ", lines[-1]).groups())
    assert numbers > 20_000
    assert verdicts > 200
    page = (RESULTS / "README.md").read_text("utf-8").split("\n")
    first = next(i for i, text in enumerate(page, 1) if text.startswith("Total time: "))
    left = {int(found[1]) for line in lines if (found := re.match(r"not recomputed: line (\d+):", line))}
    assert {page[line - 1][0] for line in left if line > first} <= {"!", "*"}


def test_a_wrong_number_and_a_wrong_verdict_are_named(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("*.html", "*.svg", "*.png"))
    page = (folder / "README.md").read_text("utf-8").split("\n")
    number = next(i for i, text in enumerate(page) if "| lr=" in text)
    verdict = next(i for i, text in enumerate(page) if text.startswith("- **") and ": ✓ holds" in text)
    cells = page[number].split(" | ")
    cells[2] = f"{float(cells[2]) * 1.01:.4f}"
    page[number] = " | ".join(cells)
    claim, says = page[verdict].split(": ✓ holds")
    page[verdict] = f"{claim}: ? undecided"
    (folder / "README.md").write_text("\n".join(page), "utf-8")
    table = folder / "sine" / "results.csv"
    table.write_text(re.sub(r",(0\.\d+),", r",1\1,", table.read_text(), count=1))
    code, lines = recount(folder)
    differ = [line for line in lines if ": printed " in line]
    assert code == 1
    assert len(differ) == 3
    assert f", line {number + 1}: printed {cells[2]}, computed " in differ[0]
    assert f", line {verdict + 1}: printed ? undecided, computed ✓ holds{says}" in differ[1]
    assert differ[2].startswith("sine/results.csv, line 2: printed ")
    assert lines[-1].endswith(" verdicts, 3 differ")
