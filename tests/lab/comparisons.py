"""A small comparison, and how it is carried out in this process."""

from thalweg.lab.search.plan import Plan
from thalweg.lab.search.work import Assignment, work

PLAN = Plan(("small_tasks:Line",), (16,), ("sgd", "adamw", "alto"), trials=3, studies=3, seeds=2, steps=6)


def carry_out(plan, root, storage=None, **options):
    cells, _ = plan.cells(root)
    for cell in cells:
        cell.record(root, "thalweg compare")
    assignment = Assignment(root, cells, storage)
    work(assignment, **options)
    return cells
