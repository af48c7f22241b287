"""A comparison under way: its folder, worker processes, and the process that watches over them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import torch

from thalweg.lab import processes
from thalweg.lab.engine import record_crash
from thalweg.lab.saved import checkpoint
from thalweg.lab.search.work import Assignment, open_tickets, process
from thalweg.lab.signals import Terminated
from thalweg.records.errors import TaskFault, UserError
from thalweg.records.files import writing

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from thalweg.lab.search.cells import Job, PlannedCell

KILLS = 3  # of a run's process without any progress, before it counts as a crash: out of memory, as a rule
GRACE = 20.0  # seconds to save what is under way, of the 30 that SLURM, Kubernetes and torchrun leave by default
LARGEST_JOBS = 256
OnMessage = Callable[[str, Any], None]


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    over: bool = False


@dataclass
class _Crashes:
    """How often each run took its process down, since it last got anywhere."""

    counts: dict[Path, tuple[int, float]] = field(default_factory=dict)

    def add(self, job: Job) -> int:
        reached = checkpoint.written(job.folder)
        count, before = self.counts.get(job.folder, (0, 0.0))
        self.counts[job.folder] = (count + 1 if reached == before else 1), reached
        return self.counts[job.folder][0]


def default_jobs() -> int:
    """One process on an accelerator, else one a core: small models do not gain from threads."""
    return 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, LARGEST_JOBS)


def begin(root: Path, cells: list[PlannedCell], command: str, processes: int, storage: str | None = None) -> Assignment:
    """Write down in the folder what is asked for, and by which command; what the workers need to know.

    Raises:
        UserError: the folder cannot be written, or the storage is none.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for cell in cells:
            cell.record(root, command)
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes))  # OMP_NUM_THREADS holds
    assignment = Assignment(root, cells, storage, threads)
    if storage is not None:
        open_tickets(assignment)  # or a clear error now
    return assignment


def run(
    assignment: Assignment, jobs: int, on_message: OnMessage = lambda what, value: None, *, timing: bool = False
) -> None:
    """Work with so many processes until the comparison is done, or time its tables with one.

    ``on_message`` gets what the workers send, as (job, value) where it is about one.

    Raises:
        KeyboardInterrupt: Ctrl-C; the workers have saved what they train, or were killed by a second one or after
            :data:`GRACE` seconds.
        Terminated: the same by a signal (:mod:`thalweg.lab.signals`).
        TaskFault: a task's code raised.
        UserError: a worker says so, or workers do not even start.
    """
    context = processes.context()
    crashes, early = _Crashes(), 0
    workers: list[_Worker] = []

    def start() -> None:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=process, args=(assignment, timing, dict(os.environ), theirs), daemon=True)
        with processes.undisturbed():
            child.start()
        theirs.close()
        workers.append(_Worker(child, ours))

    try:
        for _ in range(1 if timing else jobs):
            start()
        while any(not worker.over for worker in workers):
            on_message("tick", None)
            for connection in wait([w.connection for w in workers if not w.over], timeout=0.2):
                worker = next(w for w in workers if w.connection is connection)
                try:
                    what, value = worker.connection.recv()
                except Exception:  # its process is gone, perhaps while it was sending
                    worker.over = True
                    worker.process.join(GRACE)
                    early += worker.job is None
                    if (result := _record_crash(worker, crashes, assignment)) is not None:
                        on_message("end", (worker.job, result))
                    if early > 2:
                        raise UserError(
                            f"worker processes exit at once (exit code {worker.process.exitcode}): start fewer with "
                            "--jobs"
                        ) from None
                    start()
                    continue
                _handle(worker, what, value, on_message)
    finally:
        _stop(workers)


def _handle(worker: _Worker, what: str, value: Any, on_message: OnMessage) -> None:
    if what == "over":
        worker.over = True
    elif what == "stopped":  # by a signal that it was sent itself: the job is ending
        worker.over = True
        raise Terminated(signal.SIGTERM)
    elif what == "error":
        raise UserError(value)
    elif what == "fault":
        raise TaskFault(*value)
    elif what == "bug":
        raise RuntimeError(f"in a worker process:\n{value}")
    elif what == "run":
        worker.job = value
        on_message(what, value)
    elif what in ("part", "end"):
        on_message(what, (worker.job, value))
    else:
        on_message(what, value)


def _record_crash(worker: _Worker, crashes: _Crashes, assignment: Assignment) -> dict[str, Any] | None:
    """Of a process that is gone: record the run that took it down, unless it was merely killed, which may be luck.

    Returns the result that was recorded, if any. A run that another worker has taken over meanwhile is left to it.
    """
    job, code = worker.job, worker.process.exitcode
    if job is None or (job.folder / "result.json").exists():
        return None
    if code == -signal.SIGKILL:
        if crashes.add(job) < KILLS:
            return None
        reason = f"killed {KILLS} times (probably out of memory)"
    else:
        how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
        reason = f"its process ended ({how})"
    if (ticket := open_tickets(assignment).take(job)) is None:
        return None
    result = record_crash(job.spec, job.folder, job.place, reason)
    ticket.release(result)
    return result


def _stop(workers: list[_Worker]) -> None:
    """Ask, wait a little, kill."""
    try:
        for worker in workers:
            if worker.process.is_alive():
                worker.process.terminate()
        deadline = time.monotonic() + GRACE
        for worker in workers:
            while worker.process.is_alive() and time.monotonic() < deadline:
                while worker.connection.poll():  # or it waits for us to listen
                    try:
                        worker.connection.recv()
                    except (EOFError, OSError):
                        break
                worker.process.join(0.05)
    finally:  # a second Ctrl-C comes here at once
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
