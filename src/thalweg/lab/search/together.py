"""All processes of a ``torchrun`` work on one run at a time: for models that one device does not carry."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from thalweg.lab.engine import Stopped, Training, train
from thalweg.lab.ranks import agreement, notices
from thalweg.lab.search.cells import Reader
from thalweg.lab.search.tickets import beating
from thalweg.lab.search.work import Assignment, open_tickets
from thalweg.records.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thalweg.lab.search.cells import Job
    from thalweg.lab.search.tickets import Ticket
    from thalweg.lab.search.work import OnMessage


def launched() -> bool:
    """Whether a launcher, as ``torchrun``, started this process, to work as one with its others."""
    return "WORLD_SIZE" in os.environ


def work_together(assignment: Assignment, on_message: OnMessage = lambda what, value: None) -> None:
    """Run what of the comparison no other worker runs, all ranks on each run; the first rank claims and writes.

    On the first rank ``on_message`` gets "run" (a job), "end" (a job and its result) and "note" (a line about a
    checkpoint that cannot be used). What other groups of processes have claimed is left to them: the command returns
    when nothing else is left.

    Raises:
        UserError: the ticket of a run was lost to another worker.
        TaskFault: the code of a task raised.
    """
    first = agreement.processes().is_main_process
    claimed: Iterator[tuple[Job, Ticket]] = _claimed(assignment) if first else iter(())
    while True:
        with agreement.raise_on_all():
            job, ticket = next(claimed, (None, None))
        job = agreement.broadcast(0, job)
        if job is None:
            return
        result = None
        with ExitStack() as stack:
            lost = stack.enter_context(beating(ticket)) if ticket is not None else None

            def on_event(training: Training, event: str, lost: Any = lost) -> None:
                if lost is not None and lost.is_set():
                    raise Stopped

            if first:
                on_message("run", job)
            try:
                result = train(
                    job.spec, job.folder, job.place, execution=assignment.execution, on_event=on_event,
                    say=lambda line: on_message("note", line),
                )  # fmt: skip
            except Stopped:
                raise UserError(f"another process trains in {job.folder} now: run this command again") from None
            finally:
                if ticket is not None:
                    ticket.release(result)
        if first:
            on_message("end", (job, result))
        notices.together()


def _claimed(assignment: Assignment) -> Iterator[tuple[Job, Ticket]]:
    """Every open run that can be claimed, until there is none."""
    tickets, reader = open_tickets(assignment), Reader()
    found = True
    while found:
        found = False
        for cell in assignment.cells:
            for job in cell.open_jobs(assignment.root, reader):
                if (ticket := tickets.take(job)) is not None:
                    found = True
                    yield job, ticket
