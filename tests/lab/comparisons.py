"""A small comparison, and how it is carried out in this process."""

from dataclasses import replace

from thalweg.lab.engine import Place
from thalweg.lab.search.cells import Job
from thalweg.lab.search.plan import ComparisonPlan
from thalweg.lab.search.work import Assignment, work

PLAN = ComparisonPlan(("small_tasks:Line",), (16,), ("sgd", "adamw", "alto"), trials=3, studies=3, seeds=2, steps=6)


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
