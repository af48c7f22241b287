"""What several files of the lab's tests share."""

import pytest
from comparisons import PLAN, carry_out
from lines import LINE

from thalweg.lab.engine import Place, train
from thalweg.lab.search.timing import time_tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(LINE, folder, Place("seed", number=3))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("comparison")
    cells = carry_out(PLAN, root)
    time_tables(root, cells)
    return root, cells
