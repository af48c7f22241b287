"""Random lives of optimizers (tests/fuzzing.py), in processes of their own: a signal is a failure, not the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIVES = 80


@pytest.mark.parametrize("first", range(0, 3 * LIVES, LIVES))
def test_each_life_trains_as_its_slow_twin_or_names_what_is_wrong(first):
    script = Path(__file__).with_name("fuzzing.py")
    done = subprocess.run([sys.executable, script, str(first), str(LIVES)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-40:]}\n{done.stderr[-4000:]}"
    assert done.stdout.split() == [*map(str, range(first, first + LIVES)), "done"]
