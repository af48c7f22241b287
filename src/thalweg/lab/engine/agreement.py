"""What all processes of a run decide together, so that none waits for another that has gone a different way.

Each function is a collective: all processes call it, in the same order. On one process it does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from thalweg.lab.engine.failures import Failed
from thalweg.records.errors import UserError

T = TypeVar("T")


def processes() -> PartialState:
    """The processes of this run; the first call connects them."""
    # Said, or the processes of a launcher would each be alone on a CPU.
    return PartialState(cpu=not torch.accelerator.is_available())


def gather(mine: T) -> list[T]:
    """What each process has, in the order of their ranks."""
    if processes().num_processes == 1:
        return [mine]
    found: list[T] = gather_object([mine])
    return found


def broadcast(rank: int, mine: T) -> T:
    """What the process of this rank has."""
    if processes().num_processes == 1:
        return mine
    found: T = broadcast_object_list([mine], from_process=rank)[0]
    return found


@contextmanager
def raise_on_all() -> Iterator[None]:
    """What the code inside raises on one process, :class:`UserError` or :class:`Failed`, is raised on all."""
    mine: UserError | Failed | None = None
    try:
        yield
    except (UserError, Failed) as error:
        mine = error
    said = gather(None if mine is None else (type(mine), mine.args))
    if mine is not None:
        raise mine
    for kind, arguments in filter(None, said):
        raise kind(*arguments)
