"""Any folders of tests may be given to one call of pytest, in any order."""

from __future__ import annotations

import collections
import os
from pathlib import Path

from launching import Piped

HERE = Path(__file__).parent


def test_no_two_modules_have_one_name():
    """They are imported by their bare names, so that the second would be taken for the first."""
    names = collections.Counter(path.name for path in HERE.rglob("*.py"))
    del names["conftest.py"]  # of which pytest takes care
    assert [name for name, count in names.items() if count > 1] == []


def test_folders_with_a_conftest_are_collected_in_one_call_in_reverse_order():
    """A module of each: that all modules get the same names in every process, xdist checks itself."""
    folders = sorted({path.parent for path in HERE.rglob("conftest.py")} - {HERE}, reverse=True)
    modules = [str(min(folder.glob("test_*.py"), key=lambda path: path.stat().st_size)) for folder in folders]
    assert len(modules) > 2
    command = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *modules]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = Piped(command, environment, HERE.parent)
    said, errors = done.communicate(300.0)
    assert done.returncode == 0, said[-2000:] + errors
    assert all(str(Path(module).relative_to(HERE.parent)) in said for module in modules)
