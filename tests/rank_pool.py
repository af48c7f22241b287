"""Ranks of torch.distributed on the CPU, kept from test to test as long as some are called."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

from thalweg.lab import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SECONDS = 60.0
CROWDED = 40  # threads of a rank; each process group has three, one of which wakes a hundred times a second
IDLE = 5.0  # seconds; four ranks that nobody calls take a fifth of a core
GRACE = 2.0  # seconds for the other ranks to return or to fail as well, once one has failed


def call_on_ranks(size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS) -> list[Any]:
    """What ``function(rank, *args)`` returns on each of ``size`` ranks of a gloo process group, the first rank's first.

    The processes of a size start with the first call and are kept, until nobody has called them for a while; after a
    failure the next call has new ones.

    Raises:
        AssertionError: a rank raised an error, ended, or did not return in time; with the errors of all that failed,
            and the stacks of those that were still running.
    """
    if size not in _kept:
        _kept[size] = _Ranks(size)
    try:
        return _kept[size].call(function, args, seconds)
    except BaseException:
        _kept.pop(size).end()
        raise


def end_crowded() -> None:
    """End the ranks that have made many process groups: those cost time while nothing is asked of them."""
    for size in [size for size, ranks in _kept.items() if ranks.threads() > CROWDED]:
        _kept.pop(size).end()


def end_idle(seconds: float = IDLE) -> None:
    """End the ranks that were last called so long ago."""
    for size in [size for size, ranks in _kept.items() if time.monotonic() - ranks.called > seconds]:
        _kept.pop(size).end()


class _Ranks:
    def __init__(self, size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self.stacks = [Path(self.folder.name, str(rank)) for rank in range(size)]
        context = processes.context()
        pairs = [context.Pipe() for _ in range(size)]
        self.ends = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, port, theirs, str(self.stacks[rank])), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        self.called = time.monotonic()
        for _, theirs in pairs:
            theirs.close()  # so that either side sees that the other ends

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> list[Any]:
        for end in self.ends:
            end.send(sys.path)
            end.send((function, args))
        returned: dict[int, Any] = {}
        failed: dict[int, str] = {}
        until = time.monotonic() + seconds
        while waiting := [rank for rank in range(len(self.ends)) if rank not in returned and rank not in failed]:
            ready = connection.wait([self.ends[rank] for rank in waiting], max(0.0, until - time.monotonic()))
            if not ready:
                break
            for rank in (rank for rank in waiting if self.ends[rank] in ready):
                try:
                    error, answer = self.ends[rank].recv()
                except EOFError:
                    error, answer = "ended", None
                if error is None:
                    returned[rank] = answer
                else:
                    failed[rank] = error
            if failed:
                until = min(until, time.monotonic() + GRACE)
        self.called = time.monotonic()
        if not failed and not waiting:
            return [returned[rank] for rank in range(len(self.ends))]
        late = f"no answer after {seconds:g} s" if not failed else "still running"
        failed |= {rank: f"{late}\n{stack}" for rank, stack in self._where(waiting)}
        raise AssertionError("\n".join(f"rank {rank}: {error}" for rank, error in sorted(failed.items())))

    def _where(self, ranks: list[int]) -> Iterable[tuple[int, str]]:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, signal.SIGUSR1)
        time.sleep(0.5 if ranks else 0.0)
        return [(rank, self.stacks[rank].read_text()) for rank in ranks]

    def threads(self) -> int:
        """Of the first rank, where the system says so."""
        tasks = Path(f"/proc/{self.processes[0].pid}/task")
        return sum(1 for _ in tasks.iterdir()) if tasks.exists() else 0

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


_kept: dict[int, _Ranks] = {}


def _serve(rank: int, size: int, port: int, end: connection.Connection, stacks: str) -> None:
    faulthandler.register(signal.SIGUSR1, open(stacks, "w"))  # noqa: PTH123, SIM115 (until the process ends)
    processes.listen()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    while True:
        try:
            sys.path[:] = end.recv()
        except EOFError:
            # Not through the interpreter's end: there a thread of gloo that lets go of a tensor late aborts it.
            os._exit(0)
        try:
            function, args = end.recv()
            answer = function(rank, *args)
            dist.barrier()
            end.send((None, answer))
        except BaseException:  # an assertion, or what pytest.raises raises, or an answer that cannot be sent
            end.send((traceback.format_exc(), None))
