"""Running many training runs, several at a time, interruptibly."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from thalweg.lab.engine import EVALUATIONS, Stopped, train
from thalweg.lab.errors import UserError
from thalweg.lab.records import Run
from thalweg.lab.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_progress: Any = None  # the worker's ends of a queue of finished work and of an event that asks it to stop
_stop: Any = None


class Job(NamedTuple):
    """A run, its folder, and what to call with its result; that may return further jobs."""

    run: Run
    folder: Path
    done: Callable[[dict[str, Any]], Iterable[Job]]

    @property
    def cost(self) -> float:
        """Roughly, microseconds on one core."""
        return self.run.steps * step_cost(self.run)


def step_cost(run: Run) -> float:
    """Roughly, microseconds of a training step on one core."""
    return 500.0 + run.batch_size * TASKS[run.task].example_cost


def default_jobs() -> int:
    """One process on an accelerator, else one a core: small models do not gain from threads."""
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def run_all(jobs: Iterable[Job], processes: int, advance: Callable[[float], None]) -> None:
    """Run all jobs and those that follow from them.

    Args:
        jobs: what to run, in this order.
        processes: how many at a time.
        advance: called with the cost of what has just been done.

    Raises:
        KeyboardInterrupt: after the runs under way have stopped; their records stay incomplete.
    """
    pending: dict[Future[dict[str, Any]], Job] = {}
    seen: dict[str, float] = {}
    with _interrupts() as check, _pool(processes) as (pool, progress), _survived():
        ready: deque[Job] = deque()
        for job in jobs:
            check()
            ready.append(job)
        while ready or pending:
            check()
            while ready and len(pending) < processes:
                job = ready.popleft()
                pending[pool.submit(_work, job.run, job.folder)] = job
            finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            while not progress.empty():
                folder, cost = progress.get()
                seen[folder] = seen.get(folder, 0.0) + cost
                advance(cost)
            for future in finished:
                job = pending.pop(future)
                ready.extendleft(reversed(list(job.done(future.result()))))
                advance(job.cost - seen.get(str(job.folder), 0.0))  # reused, failed early, or not reported yet
                seen[str(job.folder)] = job.cost


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C and SIGTERM are heard only where the yielded function is called: not amid a database transaction."""
    pressed: list[int] = []

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: pressed.append(got)) for number in numbers]
    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _survived() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a training process was killed, perhaps for memory: run the same command with fewer --jobs, it continues"
        ) from None


@contextmanager
def _pool(processes: int) -> Iterator[tuple[ProcessPoolExecutor, Any]]:
    context = mp.get_context("spawn")
    progress, stop = context.Queue(), context.Event()
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(processes, context, _start_worker, (progress, stop, threads))
    try:
        yield pool, progress
    except BaseException:
        stop.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _start_worker(progress: Any, stop: Any, threads: int) -> None:
    global _progress, _stop
    _progress, _stop = progress, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and asks
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _follow_parent() -> None:
    """End with a parent that was killed before it could ask."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(run: Run, folder: Path) -> dict[str, Any]:
    every = max(1, run.steps // EVALUATIONS)

    def report(step: int) -> None:
        if _stop.is_set():
            raise Stopped
        if step % every == 0:
            _progress.put((str(folder), every * step_cost(run)))

    return train(run, folder, report)
