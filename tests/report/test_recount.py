"""The committed results are what somebody finds in their records who takes no line of thalweg's code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

TESTS = Path(__file__).parents[1]
RESULTS = TESTS.parent / "docs" / "results"
# An import of thalweg fails; records that are those of an earlier folder are not read again.
ALONE = """
import functools, runpy, sys
script, *folders = sys.argv[1:]
sys.modules["thalweg"] = None
sys.path.insert(0, {tests!r})
from recounted import archive
read = functools.cache(archive.Archive)
archive.Archive = lambda path: read(path.resolve())
for folder in folders:
    sys.argv[:] = [script, folder]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        print("ended with", ended.code)
"""


def recount(*folders: Path) -> list[tuple[int, list[str]]]:
    """The exit code and the lines of each, of one process that has imported SciPy and read the records."""
    command = [sys.executable, "-c", ALONE.format(tests=str(TESTS)), str(TESTS / "recount.py"), *map(str, folders)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    found = [
        (int(code), said.splitlines()) for said, code in re.findall(r"(.*?)ended with (\d+)\n", process.stdout, re.S)
    ]
    assert len(found) == len(folders)
    return found


def test_numbers_and_verdicts_are_found_again_and_wrong_ones_named(tmp_path: Path, subtests: pytest.Subtests) -> None:
    damaged = tmp_path / "results"
    look = damage(damaged)
    (sound, wrong) = recount(RESULTS, damaged)
    with subtests.test("every number and verdict is found again but prose and captions"):
        assert_all_found(*sound)
    with subtests.test("a wrong number and a wrong verdict are named"):
        look(*wrong)


def assert_all_found(code: int, lines: list[str]) -> None:
    differ = [line for line in lines if ": printed " in line]
    assert (code, differ) == (0, [])
    numbers, verdicts = map(int, re.fullmatch(r"(\d+) numbers, (\d+) verdicts, 0 differ", lines[-1]).groups())
    assert numbers > 20_000
    assert verdicts > 200
    page = (RESULTS / "README.md").read_text("utf-8").split("\n")
    first = next(i for i, text in enumerate(page, 1) if text.startswith("Total time: "))
    left = {int(found[1]) for line in lines if (found := re.match(r"not recomputed: line (\d+):", line))}
    assert {page[line - 1][0] for line in left if line > first} <= {"!", "*"}


def damage(folder: Path) -> Callable[[int, list[str]], None]:
    """A copy of the results with a wrong number, verdict and line of a table; and who looks at what is said of it."""
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("*.html", "*.svg", "*.png", "*.xz"))
    (folder / "records.tar.xz").symlink_to(RESULTS / "records.tar.xz")
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

    def look(code: int, lines: list[str]) -> None:
        differ = [line for line in lines if ": printed " in line]
        assert code == 1
        assert len(differ) == 3
        assert f", line {number + 1}: printed {cells[2]}, computed " in differ[0]
        assert f", line {verdict + 1}: printed ? undecided, computed ✓ holds{says}" in differ[1]
        assert differ[2].startswith("sine/results.csv, line 2: printed ")
        assert lines[-1].endswith(" verdicts, 3 differ")

    return look
