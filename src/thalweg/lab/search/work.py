"""Workers: each takes the next run that nobody has, until nothing of the comparison is left."""

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

from thalweg.lab.engine import How, Stopped, Training, train
from thalweg.lab.search.cells import Cell, Job, Reader
from thalweg.lab.search.claims import Claims, FileClaims, beating
from thalweg.lab.search.timing import time_tables
from thalweg.lab.signals import SIGNALS
from thalweg.records.errors import TaskFault, UserError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

POLL = 0.5  # seconds between two looks whether others are done
Tell = Callable[[str, Any], None]


@dataclass(frozen=True)
class Assignment:
    """What the workers of a comparison need to know; all of them the same."""

    root: Path
    cells: Sequence[Cell]
    storage: str | None = None
    threads: int = 1
    how: How = field(default_factory=How)


def open_claims(assignment: Assignment) -> Claims:
    """Where this comparison's tickets are drawn."""
    if assignment.storage is None:
        return FileClaims()
    from thalweg.lab.search.storage import StorageClaims

    return StorageClaims(assignment.storage)


def work(
    assignment: Assignment, tell: Tell = lambda what, value: None, stop: Callable[[], bool] = lambda: False
) -> None:
    """Run whatever of the comparison is not done, until all of it is, by us or by others.

    ``tell`` hears "run" (a job), "part" (the share of it that is done), "end" (its result), "waiting" and "note" (a
    line about a checkpoint that cannot be used).

    Raises:
        Stopped: ``stop`` says so.
        TaskFault: the code of a task raised.
    """
    claims, reader = open_claims(assignment), Reader()
    while True:
        left = False
        for cell in assignment.cells:
            for job in cell.open_jobs(assignment.root, reader):
                if stop():
                    raise Stopped
                left = True
                if (claim := claims.take(job)) is not None:
                    result = None
                    try:
                        result = _run(job, assignment.how, claim, tell, stop)
                    finally:
                        claim.release(result)
        if not left:
            return
        if not _progress(assignment, reader):
            tell("waiting", None)
            time.sleep(POLL)


def _progress(assignment: Assignment, reader: Reader) -> bool:
    """Whether anything that was open a moment ago is complete now."""
    before = len(reader.found)
    for cell in assignment.cells:
        for _ in cell.open_jobs(assignment.root, reader):
            pass
    return len(reader.found) > before


def _run(job: Job, how: How, claim: Any, tell: Tell, stop: Callable[[], bool]) -> dict[str, Any] | None:
    tell("run", job)
    told = time.monotonic()
    with beating(claim) as lost:

        def heard(training: Training, event: str) -> None:
            nonlocal told
            if lost.is_set():
                raise Stopped
            if stop():
                training.save()
                raise Stopped
            if time.monotonic() - told > 0.25:
                told = time.monotonic()
                tell("part", training.step / job.spec.steps)

        try:
            result = train(job.spec, job.folder, job.place, how=how, heard=heard, say=lambda line: tell("note", line))
        except Stopped:
            if stop():
                raise
            return None  # outbid: somebody else has it
    tell("end", result)
    return result


def process(assignment: Assignment, timing: bool, connection: Connection) -> None:
    """The whole life of a worker process; whatever happens is said on the connection."""
    stopped = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and asks
    for one in SIGNALS:  # the parent's, or a cluster's to all of its processes
        if signal.getsignal(one) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(one, lambda *_: stopped.set())
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(assignment.threads)
    warnings.filterwarnings("ignore", message=".* is stable only up to ", category=UserWarning)  # a search tries that

    def tell(what: str, value: Any) -> None:
        connection.send((what, value))

    try:
        if timing:
            time_tables(assignment.root, assignment.cells, stopped.is_set)
        else:
            work(assignment, tell, stopped.is_set)
        tell("over", None)
    except Stopped:
        tell("stopped", None)
    except UserError as error:
        tell("error", str(error))
    except TaskFault as fault:
        tell("fault", (fault.task, fault.where, "".join(traceback.format_exception(fault.__cause__))))
    except (BrokenPipeError, ConnectionError):
        pass
    except OSError as error:  # neither the task's nor the optimizer's: a full disk, a folder where a record should be
        tell("error", f"{error.strerror or error}: {error.filename or assignment.root}")
    except BaseException:
        tell("bug", traceback.format_exc())


def _follow_parent(parent: int) -> None:
    """End with a parent that was killed before it could ask."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
