"""What all processes of a run decide together, so that none waits for another that has gone a different way.

Each function is a collective: all processes call it, in the same order. On one process it does nothing.
"""

from __future__ import annotations

import gc
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeAlias, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

from thalweg.lab.failures import Failed
from thalweg.records.errors import TaskFault, UserError

T = TypeVar("T")
Told: TypeAlias = tuple[type[Exception], tuple[Any, ...], str]
SHARED = UserError, Failed, TaskFault
PATIENCE = timedelta(days=7)  # that processes wait while another prepares data


def processes() -> PartialState:
    """The processes of this run; the first call connects them."""
    # Said, or the processes of a launcher would each be alone on a CPU.
    return PartialState(cpu=not torch.accelerator.is_available())


def gather(mine: T, group: Any = None) -> list[T]:
    """What each process has, in the order of their ranks; ``group`` is a process group of all, other than the usual."""
    count = processes().num_processes
    if count == 1:
        return [mine]
    found: list[Any] = [None] * count
    distributed.all_gather_object(found, mine, group=group)
    return found


def broadcast(rank: int, mine: T) -> T:
    """What the process of this rank has."""
    if processes().num_processes == 1:
        return mine
    found: T = broadcast_object_list([mine], from_process=rank)[0]
    return found


def in_turn(work: Callable[[], T]) -> T:
    """What ``work`` returns, done by the first process, then by the first of each other machine, then by all others.

    So that one fills a cache on disk that the others read, whether machines share it or not. They wait as long as it
    takes; what is raised before their turn they raise as well.
    """
    state = processes()
    if state.num_processes == 1:
        return work()
    patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    mine = 0 if state.is_main_process else 1 if state.is_local_main_process else 2
    found: list[T] = []
    try:
        for turn in range(3):
            with raise_on_all(patient):
                if turn == mine:
                    found.append(work())
    finally:
        distributed.destroy_process_group(patient)
    return found[0]


@contextmanager
def raise_on_all(group: Any = None) -> Iterator[None]:
    """What the code inside raises on one process, an error of :data:`SHARED`, is raised on all.

    It names the process, unless all raised the same; of several, it is the first one's. ``group`` is a process group
    to ask in, by default that of all.
    """
    mine: Exception | None = None
    try:
        yield
    except SHARED as error:
        mine = error
    said = gather(None if mine is None else told(mine), group)
    raise_first(said, mine)


def told(error: Exception) -> Told:
    """What other processes need to raise this error as well: its type, its arguments, the host."""
    if isinstance(error, TaskFault):
        trace = error.trace or "".join(traceback.format_exception(error.__cause__))
        return TaskFault, (error.task, error.where, trace), platform.node()
    return type(error), error.args, platform.node()


def raise_first(said: list[Told | None], mine: Exception | None) -> None:
    """Raise the first of the errors that processes have told, in the order of their ranks, if there is one."""
    rank = next((k for k, one in enumerate(said) if one is not None), None)
    if rank is None or (found := said[rank]) is None:
        return
    kind, arguments, host = found
    if any(other is None or other[1][:2] != arguments[:2] for other in said):
        named = 0 if issubclass(kind, UserError) else 1
        what = f"{arguments[named]} (process {rank} of {len(said)} on {host})"
        arguments = *arguments[:named], what, *arguments[named + 1 :]
    if kind is TaskFault and isinstance(mine, TaskFault):
        raise TaskFault(*arguments[:2]) from mine.__cause__  # whose traceback is of this process
    raise kind(*arguments) from mine


def group_beside() -> Any:
    """A group of all processes for what goes on beside training, by gloo; None on one process."""
    return None if processes().num_processes == 1 else _group_beside(distributed.group.WORLD)


@cache
def _group_beside(world: Any) -> Any:
    return distributed.new_group(backend="gloo")


def leave_process_group() -> None:
    """End this process's part in runs on several processes, if there were any.

    Sharded modules are in cycles, and what is left of them while the process ends may abort it.
    """
    if distributed.is_initialized():
        _group_beside.cache_clear()
        gc.collect()
        distributed.destroy_process_group()
