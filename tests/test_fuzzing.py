"""Random lives of optimizers (tests/fuzzing.py), in processes of their own: a signal is a failure, not the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from launching import Piped

LIVES = 80


@pytest.mark.parametrize("first", range(0, 3 * LIVES, LIVES))
def test_each_life_trains_as_its_slow_twin_or_names_what_is_wrong(first):
    script = Path(__file__).with_name("fuzzing.py")
    lived = Piped([str(script), str(first), str(LIVES)], dict(os.environ))
    said, errors = lived.communicate(300)
    assert lived.returncode == 0, f"{said[-40:]}\n{errors[-4000:]}"
    assert said.split() == [*map(str, range(first, first + LIVES)), "done"]
