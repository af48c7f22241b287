"""A comparison's folder, and what its workers need to know."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from thalweg import records
from thalweg.lab.search.work import Assignment, open_tickets

if TYPE_CHECKING:
    from pathlib import Path

    from thalweg.lab.search.cells import PlannedCell


def begin(root: Path, cells: list[PlannedCell], command: str, processes: int, storage: str | None = None) -> Assignment:
    """Write down in the folder what is asked for, and by which command.

    Raises:
        UserError: the folder cannot be written, or the storage is none.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            cell.record(root, command)
    except OSError as error:
        raise records.unwritable(error, root) from None
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes))  # OMP_NUM_THREADS holds
    assignment = Assignment(root, cells, storage, threads)
    if storage is not None:
        open_tickets(assignment)  # or a clear error now
    return assignment
