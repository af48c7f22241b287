"""`Lamb` goes on from checkpoints that other libraries really saved: here of those that the tests have.

``make twins`` does the same with all of them; every library's form, written down by hand: ``test_other_states.py``.
"""

from __future__ import annotations

import pytest
from checkpoints import CHECKPOINTS, largest_difference

HERE = {row.name: row for row in CHECKPOINTS if row.library in ("optax", "pytorch_optimizer")}


@pytest.mark.parametrize("name", HERE)
def test_ten_steps_from_a_checkpoint_are_those_of_the_library(name):
    assert largest_difference(HERE[name]) <= HERE[name].within
