"""Any folders of tests may be given to one call of pytest, in any order."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_no_two_modules_have_one_name():
    """They are imported by their bare names, so that the second would be taken for the first."""
    names = collections.Counter(path.name for path in HERE.rglob("*.py"))
    del names["conftest.py"]  # of which pytest takes care
    assert [name for name, count in names.items() if count > 1] == []


def test_all_folders_are_collected_in_one_call_in_reverse_order():
    folders = sorted({str(path.parent) for path in HERE.rglob("test_*.py") if path.parent != HERE}, reverse=True)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *folders]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert [line for line in done.stdout.splitlines() if " at 0x" in line] == []  # another in each worker
