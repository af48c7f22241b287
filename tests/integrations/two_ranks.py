"""Two processes of torch.distributed on the CPU, kept for all tests of a session, as torch takes seconds to start."""

from __future__ import annotations

import os
import socket
import traceback
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 300.0


def on_two_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returns on the two ranks of a gloo process group, the first rank's first.

    After an error on either, the next call has two new processes.

    Raises:
        AssertionError: a rank raised an error, which the message has, ended, or did not return in time.
    """
    if not _Ranks.running:
        _Ranks.running.append(_Ranks())
    try:
        return _Ranks.running[0].call(function, args)
    except BaseException:
        _Ranks.running.pop().end()
        raise


class _Ranks:
    running: list[_Ranks] = []  # noqa: RUF012 (none or one)

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = get_context("spawn")
        pairs = [context.Pipe() for _ in range(2)]
        self.ends = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()  # so that either side sees that the other ends

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        for end in self.ends:
            end.send((function, args))
        found: dict[int, Any] = {}
        while len(found) < 2:
            waiting = [end for rank, end in enumerate(self.ends) if rank not in found]
            ready = connection.wait(waiting, SECONDS)
            assert ready, f"no answer after {SECONDS:g} s from rank {self.ends.index(waiting[0])}"
            for end in ready:
                rank = self.ends.index(end)
                try:
                    error, found[rank] = end.recv()
                except EOFError:
                    raise AssertionError(f"rank {rank} ended") from None
                assert error is None, f"rank {rank}: {error}"
        return [found[0], found[1]]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, port: int, end: connection.Connection) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    while True:
        try:
            function, args = end.recv()
        except EOFError:
            # Not through the interpreter's end: there a thread of gloo that lets go of a tensor late aborts it.
            os._exit(0)
        try:
            answer = None, function(rank, *args)
            dist.barrier()
        except BaseException:  # an assertion, or what pytest.raises raises
            answer = traceback.format_exc(), None
        end.send(answer)
