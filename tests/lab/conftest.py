"""What several files of the lab's tests share."""

import pytest
from lines import LINE

from thalweg.lab.engine import Place, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train(LINE, folder, Place("seed", number=3))
