"""Workers: each takes the next free run, until nothing of the comparison is left."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab.engine import Execution, Stopped, Training, train
from thalweg.lab.processes import end_with_parent, listen
from thalweg.lab.search.cells import Job, PlannedCell, Reader
from thalweg.lab.search.tickets import FileTickets, Tickets, beating
from thalweg.lab.search.timing import time_tables
from thalweg.lab.signals import SIGNALS, count_suspensions
from thalweg.records.errors import TaskFault, UserError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

POLL = 0.5  # seconds between two looks whether others are done
OnMessage = Callable[[str, Any], None]


@dataclass(frozen=True)
class Assignment:
    """What the workers of a comparison need to know; all of them the same."""

    root: Path
    cells: Sequence[PlannedCell]
    storage: str | None = None
    threads: int = 1
    execution: Execution = field(default_factory=Execution)


def open_tickets(assignment: Assignment) -> Tickets:
    """Where this comparison's tickets are drawn."""
    if assignment.storage is None:
        return FileTickets()
    from thalweg.lab.search.storage import StorageTickets

    return StorageTickets(assignment.storage)


def work(
    assignment: Assignment, on_message: OnMessage = lambda what, value: None, stop: Callable[[], bool] = lambda: False
) -> None:
    """Run whatever of the comparison is not done, until all of it is, by us or by others.

    ``on_message`` gets "run" (a job), "part" (the share of it that is done), "end" (its result), "waiting" and "note"
    (a line about a checkpoint that cannot be used).

    Raises:
        Stopped: ``stop`` says so.
        TaskFault: the code of a task raised.
    """
    tickets, reader = open_tickets(assignment), Reader()
    while True:
        left = False
        for cell in assignment.cells:
            for job in cell.open_jobs(assignment.root, reader):
                if stop():
                    raise Stopped
                left = True
                if (ticket := tickets.take(job)) is not None:
                    result = None
                    try:
                        result = _run(job, assignment.execution, ticket, on_message, stop)
                    finally:
                        ticket.release(result)
        if not left:
            return
        if not _progress(assignment, reader):
            on_message("waiting", None)
            time.sleep(POLL)


def _progress(assignment: Assignment, reader: Reader) -> bool:
    """Whether anything that was open a moment ago is complete now."""
    before = len(reader.found)
    for cell in assignment.cells:
        for _ in cell.open_jobs(assignment.root, reader):
            pass
    return len(reader.found) > before


def _run(
    job: Job, execution: Execution, ticket: Any, on_message: OnMessage, stop: Callable[[], bool]
) -> dict[str, Any] | None:
    on_message("run", job)
    told = time.monotonic()
    with beating(ticket) as lost:

        def on_event(training: Training, event: str) -> None:
            nonlocal told
            if lost.is_set():
                raise Stopped
            if stop():
                training.save()
                raise Stopped
            if time.monotonic() - told > 0.25:
                told = time.monotonic()
                on_message("part", training.step / job.spec.steps)

        try:
            result = train(
                job.spec,
                job.folder,
                job.place,
                execution=execution,
                on_event=on_event,
                say=lambda line: on_message("note", line),
            )
        except Stopped:
            if stop():
                raise
            return None  # outbid: another worker has it
    on_message("end", result)
    return result


def process(assignment: Assignment, timing: bool, environment: dict[str, str], connection: Connection) -> None:
    """The whole life of a worker process; whatever happens is said on the connection."""
    os.environ.clear()
    os.environ.update(environment)
    stopped = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and asks
    for one in SIGNALS:  # the parent's, or a cluster's to all of its processes
        if signal.getsignal(one) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(one, lambda *_: stopped.set())
    listen()
    count_suspensions()
    end_with_parent()
    torch.set_num_threads(assignment.threads)
    warnings.filterwarnings("ignore", message=".* is stable only up to ", category=UserWarning)  # a search tries that

    def send(what: str, value: Any) -> None:
        connection.send((what, value))

    try:
        if timing:
            time_tables(assignment.root, assignment.cells, stopped.is_set, assignment.execution)
        else:
            work(assignment, send, stopped.is_set)
        send("over", None)
    except Stopped:
        send("stopped", None)
    except UserError as error:
        send("error", str(error))
    except TaskFault as fault:
        send("fault", (fault.task, fault.where, "".join(traceback.format_exception(fault.__cause__))))
    except (BrokenPipeError, ConnectionError):
        pass
    except OSError as error:  # neither the task's nor the optimizer's: a full disk, a folder where a record should be
        send("error", f"{error.strerror or error}: {error.filename or assignment.root}")
    except BaseException:
        send("bug", traceback.format_exc())
