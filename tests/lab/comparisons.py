"""A small comparison, how it is carried out in this process, and what a wrong command line says."""

from dataclasses import replace

import pytest

from thalweg.commands import main as cli
from thalweg.lab.engine import Place
from thalweg.lab.search import comparison
from thalweg.lab.search import work as workers
from thalweg.lab.search.cells import Job
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.lab.search.work import Assignment, work

PLAN = ComparisonPlan(
    ("small_tasks:Line",), (16,), ("sgd", "adamw", "alto"), trials=3, studies=3, seeds=2, steps=6, tuning_seeds=1
)
SMALL = ["compare", "small_tasks:Line", "--batch-size", "16", "--optimizers", "sgd,adamw", "--trials", "2"]
SMALL += ["--studies", "1", "--tuning-seeds", "1", "--seeds", "2", "--steps", "4", "--no-timing"]


def carry_out(plan, root, storage=None, **options):
    cells, _ = plan.cells(root)
    for cell in cells:
        cell.record(root, "thalweg compare")
    assignment = Assignment(root, cells, storage)
    work(assignment, **options)
    return cells


def job_in(folder, seed=0):
    (cell,), _ = replace(PLAN, optimizers=("adamw",)).cells(folder)
    spec = cell.spec({"lr": 0.01, "weight_decay": 0.0, "momentum": 0.9, "beta2": 0.99}, seed, test=False)
    place = Place("trial", 0, 0, 0, {"lr": 0.01})
    return Job(spec, place, cell.folder(folder) / "study-0" / f"trial-{seed}-{spec.hash}")


def error_of(arguments, capsys):
    """The one line that a wrong command line ends in."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("thalweg: error: ")
    return captured.err.removeprefix("thalweg: error: ").strip()


def workers_are_functions(monkeypatch):
    """Of ``compare``, from here on: processes take seconds to start, and have tests of their own."""

    def run(assignment, jobs, on_message=lambda what, value: None, *, timing=False):
        current = [None]

        def send(what, value):
            current[0] = value if what == "run" else current[0]
            on_message(what, (current[0], value) if what in ("part", "end") else value)

        if timing:
            workers.time_tables(assignment.root, assignment.cells)
        else:
            workers.work(assignment, send)

    monkeypatch.setattr(comparison, "run", run)
