"""What several files of the lab's tests share."""

import pytest
from comparisons import PLAN, carry_out, job_in, workers_are_functions
from lines import LINE

from thalweg.lab.engine import Place, train
from thalweg.lab.search.timing import time_tables
from thalweg.lab.search.work import Assignment, open_tickets


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


@pytest.fixture
def own_data(tmp_path, tmp_path_factory, monkeypatch):
    """A folder for data of one's own, of any number of rows."""
    import datasets

    monkeypatch.setenv("THALWEG_DATA", str(tmp_path))
    monkeypatch.setenv("THALWEG_DATA_ROWS", "any")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    return tmp_path


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """A folder with models and tokenizers under their published names."""
    import hub_folders

    root = tmp_path_factory.mktemp("weights")
    hub_folders.weights(root)
    return root


@pytest.fixture(params=["file", "journal", "sqlite"])
def open_two(request, tmp_path):
    """Two workers' views of one place to claim in, and the folders of each."""
    if request.param == "file":
        roots, url = [tmp_path / "shared"] * 2, None
    else:
        roots = [tmp_path / "one", tmp_path / "two"]
        url = f"journal:{tmp_path}/journal" if request.param == "journal" else f"sqlite:///{tmp_path}/db"
    return [(open_tickets(Assignment(root, [], url)), job_in(root)) for root in roots]


@pytest.fixture
def in_this_process(monkeypatch):
    workers_are_functions(monkeypatch)
