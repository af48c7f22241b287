"""Two processes of torch.distributed on the CPU."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from torch import distributed as dist
from torch import multiprocessing as mp

if TYPE_CHECKING:
    from collections.abc import Callable


def on_two_ranks(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returns on two ranks of a gloo process group, in no order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_on_a_rank, (port, results, function, args), nprocs=2)
    return [results.get() for _ in range(2)]


def _on_a_rank(rank: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results.put(function(rank, *args))
    dist.barrier()
    # Not through the interpreter's end: there a thread of gloo that lets go of a tensor late aborts the process.
    os._exit(0)
