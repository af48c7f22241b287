"""All processes of a ``torchrun`` work on one run at a time: for models that one device does not carry."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from thalweg.lab.engine import Stopped, Training, agreement, train
from thalweg.lab.search.cells import Reader
from thalweg.lab.search.claims import beating
from thalweg.lab.search.work import Assignment, open_claims
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thalweg.lab.search.cells import Job
    from thalweg.lab.search.claims import Claim
    from thalweg.lab.search.work import Tell


def launched() -> bool:
    """Whether a launcher, as ``torchrun``, started this process, to work as one with its others."""
    return "WORLD_SIZE" in os.environ


def work_together(assignment: Assignment, tell: Tell = lambda what, value: None) -> None:
    """Run what of the comparison nobody else runs, all ranks on each run; the first rank claims and writes.

    On the first rank ``tell`` hears "run" (a job), "end" (a job and its result) and "note" (a line about a checkpoint
    that cannot be used). What other groups of processes have claimed is left to them: the command returns when nothing
    else is left.

    Raises:
        UserError: the claim of a run was lost to somebody else.
        TaskFault: the code of a task raised.
    """
    first = agreement.processes().is_main_process

    def note(line: str) -> None:
        tell("note", line)

    claimed: Iterator[tuple[Job, Claim]] = _claimed(assignment) if first else iter(())
    while True:
        with agreement.on_all():
            job, claim = next(claimed, (None, None))
        job = agreement.of_rank(0, job)
        if job is None:
            return
        result = None
        with ExitStack() as stack:
            lost = stack.enter_context(beating(claim)) if claim is not None else None

            def heard(training: Training, event: str, lost: Any = lost) -> None:
                if lost is not None and lost.is_set():
                    raise Stopped

            if first:
                tell("run", job)
            try:
                result = train(job.spec, job.folder, job.place, how=assignment.how, heard=heard, say=note)
            except Stopped:
                raise UserError(f"another process trains in {job.folder} now: start this one again") from None
            finally:
                if claim is not None:
                    claim.release(result)
        if first:
            tell("end", (job, result))


def _claimed(assignment: Assignment) -> Iterator[tuple[Job, Claim]]:
    """Every open run that can be claimed, until there is none."""
    claims, reader = open_claims(assignment), Reader()
    found = True
    while found:
        found = False
        for cell in assignment.cells:
            for job in cell.open_jobs(assignment.root, reader):
                if (claim := claims.take(job)) is not None:
                    found = True
                    yield job, claim
